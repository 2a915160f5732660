"""Plugins as users install them: packages with metadata on sys.path."""

import json
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from esplug.cli.plugins import render
from esplug.errors import PluginError, UserError
from esplug.plugins import PUBLISHED, find, list_plugins, load
from esplug.plugins.task import Task
from tests.helpers.cli import run_cli

GOOD = """
from esplug import hookimpl

@hookimpl
def options():
    return {"shots": 0, "level": "easy", "scale": 1.0, "strict": False}

@hookimpl
def defaults(options):
    if options["shots"] > 8:
        raise ValueError(f"shots must be at most 8, not {options['shots']}")
    return {"max_tokens": 16 + options["shots"]}

@hookimpl
def collate(batch):
    return [row["question"] for row in batch], [row["answer"] for row in batch]

@hookimpl
def template(question):
    return question + "="

@hookimpl
def reward(model_output, target, options):
    return options["scale"] * (model_output == target)
"""
PLAIN = GOOD[: GOOD.index("@hookimpl\ndef options")] + GOOD[GOOD.index("@hookimpl\ndef collate") :].replace(
    'options["scale"] *', "options and 1.0 *"
)

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return a function that installs a distribution as pip would: a module and metadata, in a folder on sys.path."""
    modules: list[str] = []

    def install(
        distribution: str,
        source: str = PLAIN,
        *,
        name: str | None = None,
        kind: str = "task",
        attribute: str = "",
        version: str | None = "1.2",
        entry_points: str | None = None,
    ) -> None:
        module = f"esplug_test_{distribution.replace('-', '_')}_{len(modules)}"
        modules.append(module)
        folder = tmp_path / f"site{len(modules)}"
        info = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
        if version is not None:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        declared = f"[esplug.{kind}s]\n{name or distribution} = {module}{attribute}\n"
        (info / "entry_points.txt").write_text(declared if entry_points is None else entry_points)
        monkeypatch.syspath_prepend(folder)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def error_of(kind: str, name: str) -> str:
    with pytest.raises(PluginError) as caught:
        load(kind, name)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_built_ins_are_ordinary_plugins() -> None:
    listed = {(plugin.kind, plugin.name) for plugin in list_plugins() if plugin.distribution == "esplug"}
    assert listed == {
        *(("shaping", name) for name in ("z-scores", "z-scores-per-prompt", "centered-ranks", "mean-centered")),
        *(("logger", name) for name in ("console", "csv", "jsonl", "none", "tensorboard", "trackio", "wandb")),
    }
    for kind, name in listed:
        if name not in ("tensorboard", "trackio", "wandb") or find_spec(name):
            load(kind, name)


def test_load_returns_the_hooks(install: Install) -> None:
    install("adder")
    hooks = load("task", "adder")
    assert hooks.template(question="1+1", options={}) == "1+1="
    assert hooks.reward(model_output="2", target="2", options={"a": 1}) == 1.0
    info = find("task", "adder")
    assert (info.distribution, info.version, info.status) == ("adder", "1.2", "ok")


@pytest.mark.parametrize("attribute", [":Adder", ":adder", ":box.adder"])
def test_an_entry_point_may_be_a_class_or_an_object(install: Install, attribute: str) -> None:
    methods = PLAIN.split("import hookimpl")[1]
    for hook, first in (("collate", "batch"), ("template", "question"), ("reward", "model_output")):
        methods = methods.replace(f"{hook}({first}", f"{hook}(self, {first}")
    source = "import types\nfrom esplug import hookimpl\nclass Adder:" + textwrap.indent(methods, "    ")
    install("adder", source + "\nadder = Adder()\nbox = types.SimpleNamespace(adder=adder)", attribute=attribute)
    assert load("task", "adder").template(question="1+1", options={}) == "1+1="


def test_listing_imports_nothing(install: Install) -> None:
    install("slow", "import time\ntime.sleep(60)")
    install("rude", "raise SystemExit('no')")
    assert {"slow", "rude"} <= {plugin.name for plugin in list_plugins()}
    assert not any(name.startswith(("esplug_test_slow", "esplug_test_rude")) for name in sys.modules)


def test_listing_stays_light() -> None:
    code = """
        import sys
        from esplug.cli.plugins import plugins
        plugins(True)
        heavy = {"torch", "vllm", "ray", "numba", "wandb", "datasets", "numpy", "rich", "transformers"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        prefixes = ("esplug.shaping", "esplug.loggers", "esplug_")
        assert not any(name.startswith(prefixes) for name in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["api_version"] == 1


def test_listing_is_sorted_and_survives_damaged_metadata(install: Install) -> None:
    install("zebra")
    install("nameless", version=None)
    install("garbled", entry_points="[esplug.tasks]\nno equals sign\n")
    install("other", entry_points="[console_scripts]\nother = other:main\n")
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        tasks = {plugin.name: plugin for plugin in list_plugins() if plugin.kind == "task"}
    assert list(tasks) == sorted(tasks)
    assert tasks["nameless"].version == "unknown"
    assert tasks["zebra"].status == "ok"
    assert "garbled" not in tasks
    assert "other" not in tasks


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("task", "cuntdown", ["no task 'cuntdown'", "did you mean 'countdown'?"]),
        ("task", "Countdown", ["did you mean 'countdown'?"]),
        ("task", "esplug-tasks-countdown", ["did you mean 'countdown'?"]),
        ("task", "ader", ["installed: adder, countdown, math", "did you mean 'adder'?"]),
        ("task", "chess", ["installed: adder, countdown, math", "install the package that has it"]),
        ("dataset", "math_smal", ["no data set 'math_smal'", "did you mean 'math_small'?"]),
        ("shaping", "z_scores", ["did you mean 'z-scores'?", "centered-ranks, mean-centered"]),
        ("shaping", "nes", ["no shaping 'nes'", "z-scores"]),
        ("logger", "wandbb", ["no logger 'wandbb'", "did you mean 'wandb'?"]),
        ("logger", "mlflow", ["no logger 'mlflow'", "console", "install the package that has it"]),
    ],
)
def test_an_unknown_name_gets_the_known_ones_and_never_a_package_of_that_name(install, kind, name, words) -> None:
    install("adder")
    message = error_of(kind, name)
    assert all(word in message for word in words), message
    assert "pip install" not in message


@pytest.mark.parametrize(
    ("kind", "name", "package"),
    [
        ("task", "math", "esplug-tasks-math"),
        ("task", "maths", "esplug-tasks-math"),
        ("task", "cuntdown", "esplug-tasks-countdown"),
        ("dataset", "math-small", "esplug-tasks-math"),
    ],
)
def test_a_published_plugin_that_is_not_installed_gets_its_package(kind, name, package, monkeypatch) -> None:
    monkeypatch.setattr("esplug.plugins.discovery.distributions", lambda: [])
    message = error_of(kind, name)
    assert f"no {'data set' if kind == 'dataset' else kind} {name!r} is installed (installed: none; " in message
    assert message.endswith(f"; to install it: pip install {package}")


@pytest.mark.parametrize("kind", ["task", "dataset"])
def test_the_published_plugins_are_those_of_the_packages_here(kind) -> None:
    here = {each.name: each.distribution for each in list_plugins() if each.distribution.startswith("esplug-")}
    of_kind = {each.name for each in list_plugins() if each.kind == kind}
    assert PUBLISHED[kind] == {name: package for name, package in here.items() if name in of_kind}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import esplug_no_such_module", "ModuleNotFoundError: No module named 'esplug_no_such_module'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_plugin_that_fails_to_import(install: Install, source: str, expected: str) -> None:
    install("adder")
    install("broken", source)
    message = error_of("task", "broken")
    assert "task 'broken' (broken 1.2)" in message
    assert expected in message
    assert "pip install -U broken" in message
    with pytest.raises(PluginError) as caught:
        load("task", "broken")
    assert caught.value.__cause__ is not None
    load("task", "adder")


def test_ctrl_c_during_an_import_is_raised(install: Install) -> None:
    install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load("task", "slow")


@pytest.mark.parametrize("attribute", [":Missing", ":Broken", ":Nested.missing"])
def test_an_entry_point_to_a_missing_object(install: Install, attribute: str) -> None:
    install("adder", "class Nested: pass\nclass Broken:\n    def __init__(self, needed): pass", attribute=attribute)
    message = error_of("task", "adder")
    assert "(adder 1.2)" in message
    assert ("needed" if attribute == ":Broken" else f"has no {attribute[1:]!r}") in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("def reward(", "def rewards(", "'rewards', which is no hook of a task; did you mean 'reward'?"),
        ("def template", "def _template_", "'_template_', which is no hook"),
        ("@hookimpl\ndef reward", "@hookimpl(specname='grade')\ndef reward", "implements 'grade'"),
        ("@hookimpl\ndef reward", "def _reward", "lacks the required hook reward"),
        ("@hookimpl\ndef ", "def _", "lacks the required hook collate and template and reward"),
        ("@hookimpl\ndef reward", "def reward", "defines reward() without marking it"),
        ("@hookimpl\ndef template", "def options(): ...\n@hookimpl\ndef template", "defines options()"),
        ("def reward(model_output", "def reward(model_output, prompt", "takes the unknown argument 'prompt'"),
        ("target, options):", "target, options=None):", "argument 'options' of hook reward has a default"),
        ("target, options):", "target, *, options):", "argument 'options' of hook reward has a *"),
    ],
)  # fmt: skip
def test_a_plugin_that_does_not_fit_the_hooks(install: Install, old: str, new: str, expected: str) -> None:
    assert old in PLAIN
    install("adder", PLAIN.replace(old, new))
    message = error_of("task", "adder")
    assert "task 'adder' (adder 1.2)" in message
    assert expected in message


def test_unknown_argument_names_the_allowed_ones(install: Install) -> None:
    install("adder", PLAIN.replace("(question)", "(question, model)"))
    assert "it may take question, options" in error_of("task", "adder")
    install("flat", "from esplug import hookimpl\n@hookimpl\ndef shape(reward): ...", kind="shaping")
    assert "it may take rewards" in error_of("shaping", "flat")


def test_unusual_but_valid_signatures_are_accepted(install: Install) -> None:
    source = PLAIN.replace("(question)", "(question, _cache={}, **future)") + "\nfrom math import log as load_rows\n"
    install("adder", source)
    assert load("task", "adder").template(question="1+1", options={}) == "1+1="


def test_a_task_and_a_dataset_may_have_the_same_name(install: Install) -> None:
    install("adder")
    install("sums", "from esplug import hookimpl\n@hookimpl\ndef build(): return {}", kind="dataset", name="adder")
    assert [p.kind for p in list_plugins() if p.name == "adder"] == ["task", "dataset"]
    assert load("dataset", "adder").build(fetch=None) == {}
    assert "did you mean 'adder'?" in error_of("dataset", "ader")
    install("empty", "", kind="dataset")
    assert "lacks the required hook build" in error_of("dataset", "empty")
    install("greedy", "from esplug import hookimpl\n@hookimpl\ndef build(fetch, out): ...", kind="dataset")
    assert "it may take fetch" in error_of("dataset", "greedy")


def test_a_duplicate_name_is_ambiguous(install: Install) -> None:
    install("first", name="sum")
    install("second", name="sum")
    install("third")
    statuses = {p.distribution: p.status for p in list_plugins() if p.kind == "task"}
    assert statuses["first"] == "duplicate: also in second"
    assert statuses["second"] == "duplicate: also in first"
    assert statuses["third"] == "ok"
    message = error_of("task", "sum")
    assert "first 1.2" in message
    assert "second 1.2" in message
    assert "pip uninstall" in message
    load("task", "third")


def test_one_distribution_found_twice_is_not_a_duplicate(install: Install) -> None:
    install("my-adder", name="adder")
    install("My_Adder", name="adder")
    assert [p.status for p in list_plugins() if p.name == "adder"] == ["ok"]
    load("task", "adder")


def test_the_same_name_in_two_kinds_is_not_a_duplicate(install: Install) -> None:
    install("console")
    assert {p.status for p in list_plugins() if p.name == "console"} == {"ok"}


def test_table_and_json(install: Install) -> None:
    install("a-task-with-a-long-name-" + "x" * 60)
    header, first, *_ = render().splitlines()
    assert header.split() == ["kind", "name", "distribution", "version", "status"]
    assert any("x" * 60 in line for line in render().splitlines())
    assert first.startswith("task")
    listing = json.loads(render(as_json=True))
    assert listing["api_version"] == 1
    last = listing["plugins"][-1]
    assert list(last) == ["kind", "name", "distribution", "version", "entry_point", "status"]
    assert (last["name"], last["entry_point"]) == ("wandb", "esplug.loggers.wandb:WandbLogger")


# Task


@pytest.fixture
def adder(install: Install) -> str:
    install("adder", GOOD)
    return "adder"


def test_task_options_are_converted(adder: str) -> None:
    task = Task.load(adder, {"shots": "3", "scale": "2", "strict": "Yes", "level": "7"})
    assert task.options == {"shots": 3, "level": "7", "scale": 2.0, "strict": True}
    assert type(task.options["scale"]) is float
    assert Task.load(adder).options == {"shots": 0, "level": "easy", "scale": 1.0, "strict": False}
    assert Task.load(adder, {"strict": False, "scale": 2, "shots": 1}).options["scale"] == 2.0
    assert task.defaults() == {"max_tokens": 19}
    assert task.reward("2", "2") == 2.0
    assert task.template("1+1") == "1+1="
    assert task.load_rows("train", None) is None


def test_options_may_depend_on_others(install: Install) -> None:
    source = GOOD.replace("def options():\n", "def options(given):\n    assert isinstance(given, dict)\n").replace(
        '"strict": False}', '"strict": False, **({"depth": 1} if given.get("level") == "deep" else {})}'
    )
    install("adder", source)
    task = Task.load("adder", {"level": "deep", "depth": "3"})
    assert task.options["depth"] == 3
    assert pickle.loads(pickle.dumps(task)).options == task.options
    assert "depth" not in Task.load("adder").options
    with pytest.raises(PluginError, match="has no option 'depth'"):
        Task.load("adder", {"depth": "3"})


EXAMPLES = "from esplug.hookspecs import Example\n@hookimpl\ndef examples():\n    return "


@pytest.mark.parametrize(
    ("returned", "code", "shown"),
    [
        ("[Example('sum', '1 +\\n1?', '2'), Example('long', 'x' * 200)]", 0, "sum   1 + 1?"),
        ("[Example('sum', '\\x1b[31m?')]", 0, "sum   ␛[31m?    -"),
        ("[]", 2, "error: task 'adder' has no examples to list"),
        ("['sum']", 2, "examples returned list; it must return a list of Example"),
        ("1 / 0", 2, "examples failed [ZeroDivisionError: division by zero]"),
    ],
)
def test_examples_are_listed(install: Install, monkeypatch, capfd, returned, code, shown) -> None:
    install("adder", PLAIN + EXAMPLES + returned)
    done, out, err = run_cli(monkeypatch, capfd, "data", "list", "--task", "adder")
    assert done == code
    assert shown in out + err
    assert max(map(len, out.splitlines()), default=0) < 150


def test_task_pickles_as_name_and_options(adder: str) -> None:
    task = Task.load(adder, {"scale": "3"})
    assert pickle.loads(pickle.dumps(task)).options == task.options
    assert pickle.loads(pickle.dumps(task.reward))("2", "2") == 3.0


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("shot", "1", "task 'adder' has no option 'shot'; did you mean 'shots'? (shots, level, scale, strict)"),
        ("zzz", "1", "has no option 'zzz'; choose from (shots, level, scale, strict)"),
        ("shots", "many", "option 'shots' must be int, not 'many'"),
        ("shots", True, "option 'shots' must be int, not True"),
        ("shots", 1.5, "option 'shots' must be int, not 1.5"),
        ("scale", "big", "option 'scale' must be float, not 'big'"),
        ("strict", "maybe", "option 'strict' must be bool (true or false), not 'maybe'"),
        ("strict", 1, "option 'strict' must be bool (true or false), not 1"),
        ("level", 3, "option 'level' must be str, not 3"),
    ],
)
def test_task_option_errors(adder: str, option: str, value: object, expected: str) -> None:
    with pytest.raises(PluginError) as caught:
        Task.load(adder, {option: value})
    assert expected in str(caught.value)


def test_task_without_options(install: Install) -> None:
    install("plain")
    assert Task.load("plain").options == {}
    assert Task.load("plain").defaults() == {}
    with pytest.raises(PluginError, match="task 'plain' takes no options"):
        Task.load("plain", {"shots": "1"})


def test_task_that_rejects_an_option_value(adder: str) -> None:
    with pytest.raises(UserError, match="task 'adder': shots must be at most 8, not 9"):
        Task.load(adder, {"shots": "9"}).defaults()


def test_task_collate(adder: str) -> None:
    task = Task.load(adder)
    rows = [{"question": "1+1", "answer": "2"}, {"question": "1+2", "answer": "3"}]
    assert task.collate(rows) == (["1+1", "1+2"], ["2", "3"])
    with pytest.raises(UserError) as caught:
        task.collate([rows[0], {"question": "1+2", "solution": "3"}])
    assert str(caught.value) == (
        "task 'adder' needs the column 'answer', which row 2 of the batch lacks; columns found: question, solution"
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("None", "collate returned NoneType instead of two lists"),
        ("[1], [2], [3]", "collate returned tuple instead of two lists"),
        ("'ab'", "collate returned str instead of two lists"),
        ("[1, 2], [1]", "2 questions and 1 targets for 2 rows"),
        ("[1], [1]", "1 questions and 1 targets for 2 rows"),
        ("{}['lost']", "needs the column 'lost'"),
        ("{}['question']", "collate failed [KeyError: 'question']"),
        ("1 / 0", "collate failed [ZeroDivisionError"),
        ("int('x')", "task 'odd': invalid literal"),
    ],
)
def test_task_collate_faults(install: Install, body: str, expected: str) -> None:
    collate = '[row["question"] for row in batch], [row["answer"] for row in batch]'
    install("odd", PLAIN.replace(collate, body))
    with pytest.raises(UserError) as caught:
        Task.load("odd").collate([{"question": "1", "answer": "1"}] * 2)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ('[{"role": "user", "content": question}]', True),
        ("None", False),
        ("[question]", False),
        ('[{"role": "user"}]', False),
    ],
)
def test_task_template_result(install: Install, body: str, good: bool) -> None:
    install("chat", PLAIN.replace('question + "="', body))
    task = Task.load("chat")
    if good:
        assert task.template("hi") == [{"role": "user", "content": "hi"}]
    else:
        with pytest.raises(PluginError, match=r"task 'chat' \(chat 1.2\): template returned"):
            task.template("hi")

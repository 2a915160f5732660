"""Plugins as users install them: how they are found, listed and loaded."""

import json
import subprocess
import sys
import textwrap
import warnings
from importlib.util import find_spec

import pytest

from esplug.cli.plugins import render
from esplug.errors import PluginError
from esplug.plugins import PUBLISHED, find, list_plugins, load
from tests.helpers.packages import OWN_TASKS
from tests.helpers.task_packages import PLAIN, Install


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
        heavy = {"torch", "vllm", "ray", "numba", "wandb", "datasets", "numpy", "rich", "transformers", "verifiers"}
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


INSTALLED = f"installed: {', '.join(sorted(['adder', *OWN_TASKS]))})"


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("task", "cuntdown", ["no task 'cuntdown'", "did you mean 'countdown'?"]),
        ("task", "Countdown", ["did you mean 'countdown'?"]),
        ("task", "esplug-tasks-countdown", ["did you mean 'countdown'?"]),
        ("task", "ader", [INSTALLED, "did you mean 'adder'?"]),
        ("task", "chess", [INSTALLED, "install the package that has it"]),
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
        ("task", "verifier", "esplug-tasks-verifiers"),
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

"""The task that the core uses: its options, rows, prompts and rewards, whatever the plugin returns."""

import pickle
import re

import pytest

from esplug.errors import PluginError, UserError
from esplug.plugins.task import Task
from tests.helpers.cli import run_cli
from tests.helpers.task_packages import GOOD, PLAIN, Install


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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"shots": 0}),
        ({"shots": "2"}, {"shots": 2, "worked": 0.5}),
        ({"shots": "2", "worked": "1"}, {"shots": 2, "worked": 1.0}),
        ({"worked": "1"}, "has no option 'worked'; choose from (shots)"),
        ({"shots": "2", "wroked": "1"}, "has no option 'wroked'; did you mean 'worked'? (shots, worked)"),
    ],
)
def test_options_may_depend_on_what_the_user_gives(install: Install, given: dict[str, str], expected: object) -> None:
    declared = 'options():\n    return {"shots": 0, "level": "easy", "scale": 1.0, "strict": False}'
    depends = 'options(given):\n    return {"shots": 0} | ({"worked": 0.5} if int(given.get("shots", 0)) else {})'
    assert declared in GOOD
    install("adder", GOOD.replace(declared, depends))
    if isinstance(expected, dict):
        task = Task.load("adder", given)
        assert task.options == pickle.loads(pickle.dumps(task)).options == expected
    else:
        with pytest.raises(PluginError, match=re.escape(expected)):
            Task.load("adder", given)


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

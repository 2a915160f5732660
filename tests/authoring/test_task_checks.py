"""Checks of tasks by `esplug.testing` and `esplug check`: good ones pass, and each fault fails the right check."""

import math
import random
import re
import time

import pytest

from esplug import Reward, hookimpl
from esplug.authoring.conformance.answers import ANSWERS
from esplug.errors import PluginError, UserError
from esplug.testing import check_task, task_checks
from tests.helpers.packages import run_with, write
from tests.helpers.plugins import Task, failed


def test_a_good_task_passes() -> None:
    checks = check_task(Task, {"scale": "2"}, gold=lambda target: target)
    detail = {check.name: check.detail for check in checks}
    assert detail["options"] == "scale: float = 1.0"
    assert detail["train rows"].startswith("4 in train;")
    assert detail["reward of empty answer"].startswith("0; ")
    assert detail["reward of gold answer"].startswith("2; ")
    assert "chat messages" in detail["prompts"]
    assert detail["reward repeats"] == "the same for the same answer"


@pytest.mark.parametrize("name", ["countdown", "math", "reasoning-gym", "number-guessing", "calculator"])
def test_the_installed_tasks_pass(name) -> None:
    gold = {check.name: check.detail for check in check_task(name)}["reward of gold answer"]
    assert ("1 (correct)" in gold) == (name in ("math", "reasoning-gym", "calculator")), (
        gold
    )  # whose targets are answers


class FailsGrading(Task):
    @hookimpl
    def defaults(self):
        return {"reward_function_timeout": 0.3}

    @hookimpl
    def reward(self, model_output, target):
        if not model_output:
            return math.nan
        if model_output.startswith("{[(<"):
            return int(model_output)
        if model_output.startswith("99999"):
            time.sleep(60)
        return float(model_output == target)


def test_a_reward_that_fails_on_some_answers() -> None:
    checks = task_checks(FailsGrading(), gold=lambda target: target)
    faults = failed(checks)
    assert list(faults) == ["reward of empty answer", "reward of garbage", "reward of huge answer"]
    nan, garbage, huge = faults.values()
    detail = {check.name: check.detail for check in checks}
    assert detail["reward repeats"] == "not tried: some answers could not be graded once"
    assert "error:NonFinite" in nan
    assert "error:ValueError [ValueError: invalid literal for int()" in garbage
    assert "timeout [no answer within 0.3 s]" in huge


class FailsOnSome(Task):
    @hookimpl
    def reward(self, model_output, target):
        return 1 / (target not in model_output or "boxed" not in model_output)


def test_a_reward_that_fails_on_one_format_of_the_targets_text() -> None:
    assert "ZeroDivisionError" in failed(task_checks(FailsOnSome))["reward of gold answer"]


class Talks(Task):
    """Replies once; ``scale`` chooses a fault."""

    @hookimpl
    def turn(self, messages, options):
        assert [message["role"] for message in messages] == ["user", "assistant"]
        if options["scale"] == 2 and len(messages[-1]["content"]) > 1000:
            raise KeyError("too much")
        if options["scale"] == 3:
            return [{"role": "user", "content": str(random.random())}]
        return None if not messages[-1]["content"].strip() else "go on"

    @hookimpl
    def reward(self, model_output, target, messages):
        assert messages[-1]["content"] == model_output
        return float(model_output == target)


@pytest.mark.parametrize(
    ("scale", "faults"),
    [
        (1, {}),
        (2, {"turn after huge answer": "turn:error:KeyError [KeyError: 'too much']"}),
        (3, {f"turn after {kind}": "one reply the first time" for kind in (*ANSWERS, "gold answer")}),
    ],
)
def test_turns_are_tried_with_every_answer(scale, faults) -> None:
    found = task_checks(Talks, {"scale": scale}, gold=lambda target: target)
    assert failed(found).keys() == faults.keys()
    for name, words in faults.items():
        assert words.removeprefix("turn:") in failed(found)[name]
    if not faults:
        assert any(check.name == "turn after empty answer" and "6 ends" in check.detail for check in found)


def test_a_reward_that_always_hangs_takes_one_time_out_per_kind_of_answer(tmp_path) -> None:
    calls = tmp_path / "calls"

    class Hangs(Task):
        @hookimpl
        def defaults(self):
            return {"reward_function_timeout": 0.2}

        @hookimpl
        def reward(self, model_output):
            with calls.open("a") as file:
                file.write("called\n")
            time.sleep(60)

    faults = failed(task_checks(Hangs))
    assert list(faults) == [f"reward of {kind}" for kind in ("empty answer", "garbage", "huge answer", "gold answer")]
    assert len(calls.read_text().splitlines()) < 15  # it was 27 answers and more, of 3 targets


class Thing:
    def __init__(self, text):
        self.text = text


class AsksThings(Task):
    @hookimpl
    def collate(self, batch):
        return [Thing(row["q"]) for row in batch], [row["a"] for row in batch]

    @hookimpl
    def template(self, question):
        return question.text


def test_questions_may_be_arbitrary_objects(monkeypatch) -> None:
    monkeypatch.setattr("esplug.authoring.conformance.tasks.reward_checks", lambda *_, **__: None)
    check_task(AsksThings)


@pytest.mark.parametrize(("words", "fault"), [("{str(n) for n in range(40)}", True), ("map(str, range(40))", False)])
def test_an_installed_task_whose_rows_come_from_a_set(words, fault, monkeypatch, tmp_path) -> None:
    """A set has another order in another process, such as a resumed run."""
    monkeypatch.setattr("esplug.authoring.conformance.tasks.reward_checks", lambda *_, **__: None)
    source = f"""
from esplug import hookimpl
@hookimpl
def load_rows(split): print("loading"); return [{{"q": word}} for word in {words}]
@hookimpl
def collate(batch): return [row["q"] for row in batch], [0] * len(batch)
@hookimpl
def template(question): return question
@hookimpl
def reward(model_output): return 0.0
"""
    name = f"rows-of-{'a-set' if fault else 'a-list'}"
    module = name.replace("-", "_")
    entry_points = f"[esplug.tasks]\n{name} = {module}\n"
    write({f"{module}.py": source, f"{module}-1.dist-info/METADATA": f"Name: {name}\nVersion: 1\n",
           f"{module}-1.dist-info/entry_points.txt": entry_points}, tmp_path)  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    checks = task_checks(name)
    assert list(failed(checks)) == (["train rows", "eval rows"] if fault else [])
    assert "in another process" in {check.name: check.detail for check in checks}["train rows"]


class EarnsAnything(Task):
    @hookimpl
    def reward(self, model_output):
        return Reward(random.random(), "lucky", correct=False)


def test_random_rewards_fail_and_so_do_wrong_gold_answers() -> None:
    faults = failed(task_checks(EarnsAnything, gold=lambda target: target))
    assert list(faults) == ["reward of gold answer", "reward repeats"]
    assert "(lucky)" in faults["reward repeats"]


def broken(hook: str, body: str) -> type:
    """Make a task with a different body of one hook."""
    names = {"template": "question", "collate": "batch", "load_rows": "split, path", "options": "", "defaults": ""}
    source = f"@hookimpl\ndef {hook}(self, {names[hook]}): return {body}"
    scope: dict[str, object] = {"hookimpl": hookimpl, "random": random}
    exec(source, scope)  # this file's own text
    return type("Broken", (Task,), {hook: scope[hook]})


@pytest.mark.parametrize(
    ("hook", "body", "check", "words"),
    [
        ("options", "{'level': None}", "options", "a NoneType"),
        ("options", "{'level': 'a', 'levels': ['a']}", "options", "'levels' is a list"),
        ("options", "1 / 0", "options", "ZeroDivisionError"),
        ("options", "{'level': float('nan')}", "options", "option 'level' is NaN"),
        ("options", "{'level': 10**5000}", "options", "option 'level' is an int with too many digits"),
        ("defaults", "{'sigmma': 1}", "defaults", "did you mean 'sigma'?"),
        ("defaults", "{'max_tokens': 0}", "defaults", "--max-tokens 0"),
        ("load_rows", "[]", "train rows", "no rows"),
        ("load_rows", "[{'q': 'a'}]", "train rows", "column 'a'"),
        ("load_rows", "[{'q': 'q', 'a': random.random()}]", "train rows", "differ when they are loaded again"),
        ("load_rows", "int('x')", "eval rows", "invalid literal"),
        ("load_rows", "exit(1)", "train rows", "SystemExit"),
        ("collate", "[1], [2]", "train rows", "1 questions and 1 targets for 4 rows"),
        ("collate", "['q'] * 4, [(x for x in 'ab')] * 4", "targets pickle", "target 1 (generator) cannot be pickled"),
        ("template", "None", "train rows", "template returned NoneType"),
        ("template", "' '", "prompts", "prompt 1 is empty"),
        ("template", "[{'role': 'user', 'content': 7}]", "prompts", "is not text"),
        ("template", "f'{question} {random.random()}'", "prompts", "prompt 1 differs"),
    ],
)  # fmt: skip
def test_a_task_with_a_fault(hook, body, check, words, monkeypatch) -> None:
    monkeypatch.setattr("esplug.authoring.conformance.tasks.reward_checks", lambda *_: None)  # they have own tests
    faults = failed(task_checks(broken(hook, body)))
    assert words in faults[check], faults


def test_a_task_that_does_not_load_fails_one_check() -> None:
    (check,) = task_checks(object())
    assert not check.ok
    assert "task 'object' (uninstalled plugin) lacks the required hook collate" in check.detail


def test_mistakes_in_the_users_data_are_raised(tmp_path) -> None:
    for arguments, words in (
        ({"train_dataset": str(tmp_path / "none.jsonl")}, "none.jsonl"),
        ({"options": {"scale": "big"}}, "option 'scale' must be float"),
    ):
        with pytest.raises(UserError, match=words):
            task_checks(broken("load_rows", "None"), **arguments)
    int_fails = broken("template", "str(int(question))")  # a fault of the hook's, whatever the options
    assert "invalid literal" in failed(task_checks(int_fails, {"scale": "2"}))["train rows"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "1", "a": "2"}\n')
    checks = check_task(broken("load_rows", "None"), train_dataset=str(rows))
    (skipped,) = (check for check in checks if check.skipped)
    assert (skipped.name, skipped.ok) == ("eval rows", True)
    assert skipped.detail == "skipped: the task has no eval rows of its own; give --eval-dataset"


NO_ROWS = """
from esplug import hookimpl

@hookimpl
def collate(batch):
    return [row["q"] for row in batch], [row["a"] for row in batch]

@hookimpl
def template(question):
    return question

@hookimpl
def reward(model_output, target):
    return float(target in model_output)
"""


@pytest.mark.parametrize(
    ("flags", "skipped", "last"),
    [
        ([], ["train rows", "eval rows", "prompts and rewards"], "all 3 checks pass (3 skipped)"),
        (["--train-dataset", "{tmp}/rows.jsonl"], ["eval rows"], "all 12 checks pass (1 skipped)"),
        (["--eval-dataset", "{tmp}/rows.jsonl"], ["train rows"], "all 12 checks pass (1 skipped)"),
        (["--train-dataset", "{tmp}/rows.jsonl", "--eval-dataset", "{tmp}/rows.jsonl"], [], "all 13 checks pass"),
    ],
)
def test_a_task_without_rows_of_its_own(flags, skipped, last, tmp_path) -> None:
    info = "esplug_tasks_bare-0.1.dist-info"
    files = {
        "bare.py": NO_ROWS,
        f"{info}/METADATA": "Name: esplug-tasks-bare\nVersion: 0.1\n",
        f"{info}/entry_points.txt": "[esplug.tasks]\nbare = bare\n",
        "rows.jsonl": '{"q": "1", "a": "2"}\n',
    }
    write(files, tmp_path)
    done = run_with(tmp_path, "esplug", "check", "bare", *(flag.format(tmp=tmp_path) for flag in flags))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line[:31].strip() for line in lines if line[31:].startswith("skip ")] == skipped
    assert lines[-1] == last


def test_the_assertion_lists_the_failed_checks() -> None:
    with pytest.raises(AssertionError) as caught:
        check_task(broken("options", "{'level': None}"))
    first, *faults = str(caught.value).splitlines()
    assert re.match(r"1 of 2 checks of task .* fail:", first)
    assert [line.startswith("- options: ") for line in faults] == [True]
    with pytest.raises(PluginError, match="did you mean 'countdown'"):
        check_task("countdwn")

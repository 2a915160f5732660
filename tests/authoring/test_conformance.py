"""`esplug.testing` and `esplug check`: good plugins pass, and each fault fails the right check."""

import logging
import math
import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from esplug import Reward, hookimpl
from esplug.authoring.conformance.answers import ANSWERS
from esplug.cli.check import _print_check
from esplug.errors import PluginError, UserError
from esplug.hookspecs import hookspec
from esplug.plugins import PluginInfo, loading
from esplug.testing import Check, check_logger, check_shaping, check_task, logger_checks, shaping_checks, task_checks
from esplug.utils.console import get_console
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.packages import run_with, write
from tests.helpers.plugins import Task


def failed(checks: list[Check]) -> dict[str, str]:
    assert all("\n" not in check.detail for check in checks)
    return {check.name: check.detail for check in checks if not check.ok}


# --- tasks --------------------------------------------------------------------------------------------------


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


# --- shapings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["z-scores", "z-scores-per-prompt", "centered-ranks", "mean-centered"])
def test_the_built_in_shapings_pass(name) -> None:
    detail = {check.name: check.detail for check in check_shaping(name)}
    assert "all utilities are zero" in detail["equal rewards"]
    assert "no lower utility" in detail["order of rewards"]


def shaping(function) -> object:
    class Shaping:
        @hookimpl
        def shape(self, rewards):
            return function(rewards)

    return Shaping()


def spoil(rewards):
    rewards -= rewards.mean()
    return rewards.mean(axis=1)


ALL = {
    *("2 members, 1 prompt", "2 members, 3 prompts", "3 members, 1 prompt", "16 members, 8 prompts"),
    *("30 members, 200 prompts", "rewards of 0 and 1", "small and large rewards", "equal rewards"),
    *("utilities repeat", "order of rewards"),
}


@pytest.mark.parametrize(
    ("function", "checks", "words"),
    [
        (lambda rewards: rewards, ALL, "it must return float64[N]"),
        (lambda rewards: None, ALL, "it must return float64[N]"),
        (lambda rewards: "abc", ALL, "it must return float64[N]"),
        (lambda rewards: rewards.mean(axis=1) / 0, ALL | {"rewards are left alone"}, "FloatingPointError"),
        (lambda rewards: 1 / 0, ALL | {"rewards are left alone"}, "raised ZeroDivisionError"),
        (lambda rewards: np.full(len(rewards), np.nan), ALL, "not finite"),
        (spoil, {"rewards are left alone"}, "work on a copy"),
        (lambda rewards: np.random.rand(len(rewards)), {"utilities repeat"}, "different utilities"),
    ],
)  # fmt: skip
def test_a_shaping_with_a_fault(function, checks, words) -> None:
    with np.errstate(all="raise"):
        faults = failed(shaping_checks(shaping(function)))
    assert faults.keys() == checks
    assert all(words in fault for fault in faults.values())


def ends(error):
    def function(rewards):
        raise error

    return shaping(function)


def test_only_ctrl_c_ends_the_check() -> None:
    assert failed(shaping_checks(ends(BaseException("over")))).keys() == ALL | {"rewards are left alone"}
    with pytest.raises(KeyboardInterrupt):
        shaping_checks(ends(KeyboardInterrupt()))


def test_an_uninstalled_plugin_gets_no_advice_to_update() -> None:
    (check,) = shaping_checks(object())
    assert "lacks the required hook shape" in check.detail
    assert "pip" not in check.detail


def test_a_deprecated_argument_is_reported_when_the_plugin_loads(monkeypatch, caplog) -> None:
    class Spec:
        @hookspec(firstresult=True, warn_on_impl_args={"rewards": DeprecationWarning("rewards goes, take matrix")})
        def shape(self, rewards): ...

    monkeypatch.setattr(loading, "_SPECS", {**loading._SPECS, "shaping": Spec})
    detail = {check.name: check.detail for check in shaping_checks(shaping(lambda rewards: rewards))}["loads"]
    assert detail == "hooks: shape; rewards goes, take matrix"
    assert "pip" not in caplog.text


def test_debug_shows_tracebacks(monkeypatch, capfd, caplog) -> None:
    logger = logging.getLogger("esplug")
    monkeypatch.setattr(logger, "level", logger.level)
    run_cli(monkeypatch, capfd, "check", "z-scores", "--debug")
    shaping_checks(shaping(lambda rewards: 1 / 0))
    assert "in <lambda>\n" in caplog.text
    assert "ZeroDivisionError: division by zero" in caplog.text


def test_unusual_but_valid_utilities_are_reported() -> None:
    detail = {check.name: check.detail for check in check_shaping(shaping(lambda rewards: 1 - rewards.mean(axis=1)))}
    assert "all rewards are 0: such a batch moves the weights" in detail["equal rewards"]
    assert "is that intended?" in detail["order of rewards"]


# --- loggers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["console", "jsonl", "none"])
def test_the_built_in_loggers_pass(name) -> None:
    check_logger(name)


class Logger:
    synchronous = True

    @hookimpl
    def start(self, run_dir, iteration):
        self.run_dir = run_dir
        if self.bad == "start" and iteration:
            raise ValueError("cannot go on")
        if self.bad == "slow start" and iteration:
            time.sleep(0.4)

    @hookimpl
    def log(self, metrics):
        if "int" in self.bad:
            [int(value) for value in metrics.values()]
        if self.bad == "slow" and "huge" in metrics:
            time.sleep(0.4)

    @hookimpl
    def samples(self, rows):
        if "samples" in self.bad:
            [row["target"].upper() for row in rows]
        if "astray" in self.bad:
            with open("answers.txt", "w") as file:
                file.write("x")

    @hookimpl
    def finish(self, status):
        if self.bad == "slow finish" and status == "failed":
            time.sleep(0.4)
        if self.bad == "finish" and status != "finished":
            raise SystemExit(status)


ENDS = ["a run that ends as failed", "a run that ends as interrupted"]


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize(
    ("bad", "checks", "words"),
    [
        ("", [], ""),
        ("start", ["a resumed run"], "cannot start [ValueError: cannot go on]"),
        ("int", ["odd metrics"], "failed [ValueError: cannot convert float NaN to integer]"),
        ("samples", ["odd samples"], "failed [AttributeError: 'NoneType'"),
        ("finish", ENDS, "failed [SystemExit: "),
        ("astray", ["files"], "answers.txt written to the working directory"),
    ],
)
def test_a_logger_with_a_fault(bad, checks, words, synchronous) -> None:
    logger = type("Odd", (Logger,), {"bad": bad, "synchronous": synchronous})
    faults = failed(logger_checks(logger))
    assert list(faults) == checks
    assert all(words in fault for fault in faults.values())


def test_samples_are_called_once_per_split() -> None:
    calls: list[list[str]] = []

    class Keeps(Logger):
        bad = ""

        @hookimpl
        def samples(self, rows):
            calls.append(sorted({row["split"] for row in rows}))

    check_logger(Keeps)
    assert {len(splits) for splits in calls} == {1}
    assert ["a/b"] in calls


@pytest.mark.parametrize(
    ("bad", "check"), [("slow", "odd metrics"), ("slow start", "a resumed run"), ("slow finish", ENDS[0])]
)
def test_a_logger_that_delays_the_run(bad, check, monkeypatch) -> None:
    monkeypatch.setattr("esplug.authoring.conformance.loggers._SLOW", 0.3)
    slow, background = (type("Slow", (Logger,), {"bad": bad, "synchronous": each}) for each in (True, False))
    assert "leave out synchronous = True" in failed(logger_checks(slow))[check]
    assert not failed(logger_checks(background))


# --- the command line ---------------------------------------------------------------------------------------


def test_check_prints_a_table_and_exits_with_a_status(monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run_cli(monkeypatch, capfd, "check", "z-scores")
    assert (code, "equal rewards" in out, "FAIL" in out) == (0, True, False)
    with_prefix = run_cli(monkeypatch, capfd, "check", "esplug-shapings-z-scores")
    assert with_prefix[:2] == (code, out)
    assert out.splitlines()[-1] == "all 12 checks pass"

    def one(name, report):
        check = Check("x", False, "[bold]no \\[")
        report(check.name, None)
        report(check.name, check)
        return [check]

    monkeypatch.setattr("esplug.testing.shaping_checks", one)
    code, out, _ = run_cli(monkeypatch, capfd, "check", "z-scores", "--kind", "shaping")
    assert (code, out.splitlines()[-1]) == (1, "1 of 1 checks fail")
    assert "FAIL" in out
    assert "[bold]no \\[" in out


def test_a_long_detail_is_wrapped_in_its_column(monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    get_console.cache_clear()
    _print_check("a check", None)
    _print_check("a check", Check("a check", True, "word " * 30 + "x" * 60))
    get_console.cache_clear()
    first, *rest = capfd.readouterr().out.splitlines()
    assert first.startswith("a check" + " " * 24 + "pass  word word")
    assert all(line.startswith(" " * 37) and line[37] in "wx" and len(line) <= 80 for line in rest)


def test_a_rejected_option_fails_a_check(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "check", "countdown", "--task-option", "shots=99")
    assert code == 1
    assert "FAIL" in out
    assert "shots must be" in out


@pytest.mark.parametrize(("body", "code"), [("os._exit(0)", 0), ("time.sleep(60)", None)])
def test_the_last_line_names_the_check_that_ends_the_process(body, code, tmp_path) -> None:
    """The exit status may be 0, so CI must look for the closing line."""
    source = f"import os, time\nfrom esplug import hookimpl\n@hookimpl\ndef shape(rewards): {body}\n"
    metadata = {"METADATA": "Name: bad\nVersion: 1\n", "entry_points.txt": "[esplug.shapings]\nbad = bad_shaping\n"}
    write({"bad_shaping.py": source} | {f"bad-1.dist-info/{name}": text for name, text in metadata.items()}, tmp_path)
    command = [sys.executable, "-m", "esplug", "check", "bad"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline(), process.stdout.read(len("2 members, 1 prompt"))]
        if code is None:
            assert process.poll() is None
            process.kill()
    assert lines[1].startswith("loads ")
    assert lines[2] == "2 members, 1 prompt"
    assert code is None or process.returncode == code


def test_a_name_of_two_kinds_needs_its_kind(monkeypatch, capfd) -> None:
    both = [PluginInfo(kind, "twin", "twins", "1", "twins") for kind in ("task", "dataset", "logger")]
    monkeypatch.setattr("esplug.plugins.list_plugins", lambda: both)
    code, _, err = run_cli(monkeypatch, capfd, "check", "twin")
    assert (code, errors_of(err)) == (2, ["error: 'twin' is a logger and a task; say which: --kind logger"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["countdwn"], ["'countdwn'", "did you mean 'countdown'?"]),
        (["math_small"], ["no task, shaping or logger 'math_small'"]),
        (["z-scores", "--kind", "task"], ["no task 'z-scores' is installed"]),
        (["z-scores", "--task-option", "a=1"], ["--task-option is for tasks", "is a shaping"]),
        (["jsonl", "--train-dataset", "x"], ["--train-dataset is for tasks", "is a logger"]),
        (["countdown", "--kind", "task", "--task-option", "shots"], ["key=value"]),
        (["countdown", "--task-option", "shorts=1"], ["did you mean 'shots'?"]),
        (["countdown", "--train-dataset", "./no/such"], ["--train-dataset ./no/such"]),
        (["countdown", "--kind", "dataset"], ["--kind"]),
    ],
)
def test_bad_input_gets_one_line(arguments, words, monkeypatch, capfd) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "check", *arguments)
    assert (code, len(errors_of(err))) == (2, 1), err
    assert all(word in errors_of(err)[0] for word in words), err

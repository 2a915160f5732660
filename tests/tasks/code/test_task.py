"""Hooks, options and prompts of the task `code`."""

import json
import re

import pluggy
import pytest

import esplug_tasks_code as task
from esplug.hookspecs import PROJECT, TaskSpec
from esplug.testing import task_checks
from esplug_tasks_code import extraction, prompts, sandbox, small
from tests.helpers.code_rows import DOUBLE, HUMAN_EVAL, LCB, MBPP, OPTIONS, ROWS, block, graded


@pytest.fixture
def hooks():
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(TaskSpec)
    manager.register(task)
    manager.check_pending()
    return manager.hook


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("template", "r1", "template must be one of chat, plain, not 'r1'"),
        ("shots", 5, "shots must be between 0 and 4, not 5"),
        ("code", "all", "code must be one of last, first, text, not 'all'"),
        ("reward", "half", "reward must be one of fraction, all, not 'half'"),
        ("max_tests", -1, "max_tests must be 0 or more, not -1"),
        ("seconds", 0.1, "seconds must be between 0.5 and 600, not 0.1"),
        ("memory", 1, "memory must be at least 64 MiB, not 1"),
    ],
)
def test_wrong_options_are_rejected(hooks, option, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        hooks.defaults(options=OPTIONS | {option: value})


def test_options_that_would_be_ignored_are_rejected(hooks):
    with pytest.raises(ValueError, match="leave it out with template=plain"):
        hooks.defaults(options=OPTIONS | {"template": "plain", "code": "first"})
    with pytest.raises(ValueError, match=r"leave it out with the data set rows\.jsonl"):
        hooks.load_rows(split="train", path="rows.jsonl", options=OPTIONS | {"kind": "function"})
    with pytest.raises(ValueError, match="kind must be all or one of function, program, not 'essay'"):
        hooks.load_rows(split="train", path=None, options=OPTIONS | {"kind": "essay"})


def test_rows_are_the_tasks_own_or_read_by_esplug(hooks):
    assert hooks.load_rows(split="train", path=None, options=OPTIONS) == ROWS["train"]
    assert hooks.load_rows(split="eval", path=None, options=OPTIONS) == ROWS["eval"]
    functions = hooks.load_rows(split="eval", path=None, options=OPTIONS | {"kind": "function"})
    assert functions == {"function": ROWS["eval"]["function"]}
    assert hooks.load_rows(split="train", path="rows.jsonl", options=OPTIONS) is None


@pytest.mark.parametrize("shots", [0, 1, 4])
@pytest.mark.parametrize("kind", small.KINDS)
def test_the_plain_prompt_continues_with_the_code(hooks, kind, shots):
    options = OPTIONS | {"template": "plain", "shots": shots}
    row = ROWS["eval"][kind][0]
    (question,), (suite,) = hooks.collate(batch=[row], options=options)
    prompt = hooks.template(question=question, options=options)
    assert prompt.endswith(f"{row['problem']}\n```python\n")
    assert prompt.count("```") == 2 * shots + 1
    assert hooks.reward(model_output=row["solution"], target=suite, options=options).correct
    assert hooks.reward(model_output=f"{row['solution']}```\n```\n1/0\n```", target=suite, options=options).correct
    assert "```" in hooks.defaults(options=options)["stop"]


def test_an_answer_continues_starter_code_on_a_line_of_its_own(hooks):
    options = OPTIONS | {"template": "plain"}
    (question,), (suite,) = hooks.collate(batch=[LCB], options=options)
    assert hooks.template(question=question, options=options).endswith(LCB["starter_code"].rstrip() + "\n")
    assert hooks.reward(model_output="        return sorted(xs) + [y]\n", target=suite, options=options).correct


def test_the_time_limit_allows_for_the_slowest_tests(hooks):
    for seconds in (0.5, 2.0, 600.0):
        most = 3 * sandbox.PATIENCE * seconds  # the last test begins after two thirds at most
        assert hooks.defaults(options=OPTIONS | {"seconds": seconds})["reward_function_timeout"] >= most + 10


@pytest.mark.parametrize("kind", small.KINDS)
def test_examples_are_right(hooks, kind):
    cases = {
        "x": {"inputs": ["7\n", "-3\n"], "outputs": {0: ["57\n", "47\n"], 3: ["False\n", "True\n"]}},
        "s": {"inputs": ["a b\n"], "outputs": {1: ["A B\n"]}},
        "xs": {"inputs": ["1 2 3\n"], "outputs": {2: ["3\n"]}},
    }
    read = {
        "x": lambda line: int(line),
        "s": lambda line: line.strip(),
        "xs": lambda line: list(map(int, line.split())),
    }
    for name, case in cases.items():
        for number, outputs in case["outputs"].items():
            tests = {"inputs": case["inputs"], "outputs": outputs}
            if kind == "function":
                expected = [json.loads(each.lower()) if name != "s" else each.strip() for each in outputs]
                tests = {
                    "fn_name": "solve",
                    "inputs": [[read[name](each)] for each in tests["inputs"]],
                    "outputs": expected,
                }
            assert graded({"tests": tests}, block(prompts.EXAMPLES[kind][number][1])).correct


def test_chats_show_what_to_write(hooks):
    def message(row, **options):
        (question,), _ = hooks.collate(batch=[row], options=OPTIONS | options)
        return hooks.template(question=question, options=OPTIONS | options)

    (only,) = message(HUMAN_EVAL)
    assert HUMAN_EVAL["prompt"].strip() in only["content"]
    assert "Write the Python function `far`." in only["content"]
    assert "candidate" not in only["content"]
    assert only["content"].endswith("Put the complete code into one ```python block.")
    (only,) = message(MBPP)
    assert MBPP["test_list"][0] in only["content"]
    assert MBPP["test_list"][1] not in only["content"]
    (only,) = message(LCB)
    assert LCB["starter_code"].rstrip() in only["content"]
    chat = message(ROWS["train"][1], shots=2)
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]
    assert "standard input" in chat[-1]["content"]
    assert extraction.program(chat[1]["content"], "last") == prompts.EXAMPLES["program"][0][1]


@pytest.mark.parametrize("problem", ["", "  ", None, 3])
def test_a_problem_without_words_is_named(hooks, problem):
    with pytest.raises(ValueError, match=r"column 'problem': .* is not a problem in words"):
        hooks.collate(batch=[{"problem": problem, "tests": DOUBLE}], options=OPTIONS)


def test_a_missing_column_is_a_key_error(hooks):
    with pytest.raises(KeyError, match="tests"):
        hooks.collate(batch=[{"problem": "Double x."}], options=OPTIONS)
    with pytest.raises(KeyError, match="problem"):
        hooks.collate(batch=[{"tests": DOUBLE}], options=OPTIONS)
    with pytest.raises(KeyError, match="cases"):
        hooks.collate(batch=[{"problem": "Double x.", "tests": DOUBLE}], options=OPTIONS | {"tests": "cases"})


def test_the_conformance_checks_pass():
    checks = task_checks(task, {"sandbox": "rlimits"})
    assert [check for check in checks if not check.ok or check.skipped] == []

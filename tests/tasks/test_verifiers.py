"""The verifiers task: environments as packages on sys.path, their rows, prompts, rewards and refusals."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esplug.data.batches import load_batch_source, load_eval_splits
from esplug.errors import UserError
from esplug.hookspecs import Reward
from esplug.plugins.task import Task
from esplug.rewards import RewardPool
from esplug.testing import check_task
from tests.helpers.cli import run_cli
from tests.helpers.verifiers_environments import IMPORT, TASKSET, make

EXAMPLE = Path("examples/environments/animal_or_plant").resolve()

Environment = Callable[..., str]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """Return a function that installs an environment under a new name, and returns the name."""
    made: list[str] = []

    def install(*changes: tuple[str, str], taskset: str = TASKSET, **rest: Any) -> str:
        name = f"esplug-test-{Path(tmp_path).name.replace('_', '-')}-{len(made)}"
        for old, new in changes:
            assert old in taskset
            taskset = taskset.replace(old, new)
        monkeypatch.syspath_prepend(make(tmp_path, name, taskset, **rest))
        made.append(name)
        return name

    yield install
    for name in made:
        module = name.replace("-", "_")
        for loaded in [each for each in sys.modules if each.split(".")[0] == module]:
            del sys.modules[loaded]


def task(env: str, **options: Any) -> Task:
    return Task.load("verifiers", {"env": env} | options)


def rows(env: str, **options: Any) -> tuple[list[Any], list[Any]]:
    """Return the training and the evaluation rows."""
    loaded = task(env, **options)
    train, held_out = loaded.load_rows("train", None), loaded.load_rows("eval", None)
    assert isinstance(held_out, dict)
    assert list(held_out) == [env]
    return list(train or []), list(held_out[env])


def target(env: str, **options: Any) -> Any:
    """Return the target of the first training row."""
    loaded = task(env, **options)
    return loaded.collate(list(loaded.load_rows("train", None) or [])[:1])[1][0]


def reward(env: str, answer: str) -> Reward:
    """Grade an answer to the first training row, in this process."""
    result = asyncio.run(task(env).reward(answer, target(env)))
    assert isinstance(result, Reward)
    return result


# Rewards


def test_weighted_rewards_are_summed_and_each_is_a_metric(environment: Environment) -> None:
    env = environment()
    answer = target(env)["answer"]
    length = len(str(answer))
    assert reward(env, str(answer)) == Reward(2.125, metrics={"right": 1.0, "near": 0.25, "length": length})
    assert reward(env, f" {answer - 1}\n") == Reward(
        0.125, metrics={"right": 0.0, "near": 0.25, "length": len(str(answer - 1))}
    )
    assert reward(env, str(answer + 2)).value == 0.0


def test_an_answer_passes_if_every_reward_is_full(environment: Environment) -> None:
    assert task(environment()).defaults() == {"max_reward": 2.5}
    plugged = json.dumps({"right": {"weight": 3.0}})
    penalty = environment(("@vf.reward(weight=0.5)", "@vf.reward(weight=-1.0)"))
    assert task(penalty, **{"task.rewards": plugged}).defaults() == {"max_reward": 3.0}


@pytest.mark.parametrize(
    ("changes", "metrics"),
    [
        ([("return float(len(trace.last_reply))", 'return {"long": 2.0, "short": 0.5}')], {"long": 2.0, "short": 0.5}),
        ([("async def length", "async def right_")], {"right_": 1.0}),
        ([("return float(len(trace.last_reply))", 'return {"near": 7.0}')], {"near_metric": 7.0}),
    ],
)
def test_metrics_by_name(environment: Environment, changes, metrics) -> None:
    found = reward(environment(*changes), "0").metrics
    assert found.items() >= metrics.items()
    assert found.keys() == {"right", "near"} | metrics.keys()


def test_a_reward_may_return_several(environment: Environment) -> None:
    body = "return float(trace.last_reply == str(self.data.answer))"
    found = reward(environment((body, 'return {"exact": 1.0, "short": 0.5}')), "-9")
    assert found == Reward(3.0, metrics={"exact": 1.0, "short": 0.5, "near": 0.0, "length": 2.0})


def test_a_reward_sees_the_conversation(environment: Environment) -> None:
    seen = """
        assert [m.role for m in trace.messages] == ["system", "user", "assistant", "user", "assistant"]
        assert [m.content for m in trace.assistant_messages] == ["<b>9</b> "]
        assert (trace.last_reply, trace.num_turns, trace.stop_condition) == ("<b>9</b>", 1, "agent_completed")
        assert trace.task.data == self.data and trace.task.key == self.key and self.data.idx is not None
        assert trace.ok and not trace.is_truncated and trace.num_output_tokens == 0
        assert self.data.prompt_text
        return 1.0
"""
    prompt = """SumsData(
                system_prompt="Add.",
                prompt=[vf.UserMessage(content="1 + 1"), vf.AssistantMessage(content="2"), vf.UserMessage(content="x")],
                answer=n,
            )"""
    env = environment(
        ("return float(trace.last_reply == str(self.data.answer))", seen.strip()),
        ('SumsData(prompt=f"{n} {self.config.words[0]} {first}", answer=n + first)', prompt),
        ("int(trace.last_reply)", "0"),
    )
    assert reward(env, "<b>9</b> ").metrics["right"] == 1.0


def test_nothing_of_one_answer_reaches_the_next(environment: Environment) -> None:
    """Three answers earn the same, whatever a reward writes to its task, configuration, data, trace or state."""
    writes = """before = getattr(self, "seen", 0), self.config.near, trace.info, trace.state.artifacts, self.data.tags
        fresh = str(before) == "(0, 0.25, {}, {}, ['a'])"
        self.seen, self.config.near = 1, 9.0
        trace.info["seen"] = True
        trace.state.artifacts["seen"] = b"1"
        self.data.tags.append("seen")
        return float(fresh)"""
    env = environment(
        ("return float(trace.last_reply == str(self.data.answer))", writes),
        ("    answer: int\n", '    answer: int\n    tags: list[str] = ["a"]\n'),
    )
    row = target(env)
    loaded = task(env)
    for _ in range(3):
        assert asyncio.run(loaded.reward("0", row)).metrics["right"] == 1.0


FAILURES = {
    "wait": ("await asyncio.sleep(60)", "timeout"),
    "hang": ("import time; time.sleep(60)", "timeout"),
    "die": ("import os; os._exit(3)", "error:ProcessDied"),
    "exit": ("raise SystemExit(1)", "error:SystemExit"),
    "nan": ("return float('nan')", "error:NonFinite"),
    "raise": ("return 1 / 0", "error:ZeroDivisionError"),
    "odd": ("return 'many'", "error:ValueError"),
}


def test_a_reward_that_fails_costs_one_answer(environment: Environment) -> None:
    """Errors are those of the environment, and not of the library that catches and wraps them."""
    cases = "".join(f"if trace.last_reply == {each!r}: {body}\n        " for each, (body, _) in FAILURES.items())
    scored = "return float(trace.last_reply == str(self.data.answer))"
    env = environment((scored, f"{cases}return 1.0"), ("int(trace.last_reply)", "0"))
    answers = [each for name in FAILURES for each in (name, "fine")]
    with RewardPool(task(env).reward, timeout=2.0, processes=2) as pool:
        grades = pool.submit(answers, [target(env)] * len(answers)).result()
    assert {name: grade.reward.label for name, grade in zip(answers, grades, strict=True) if name != "fine"} == {
        name: label for name, (_, label) in FAILURES.items()
    }
    assert all(grade.reward.metrics["right"] == 1.0 for grade in grades[1::2])
    traceback = grades[answers.index("raise")].traceback
    assert "taskset.py" in traceback
    assert traceback.endswith("ZeroDivisionError: division by zero")
    assert "TaskError" not in traceback


def test_hooks_before_scoring_that_need_no_sandbox_are_called(environment: Environment) -> None:
    hooks = """    async def setup(self, trace: vf.Trace) -> None:
        trace.info["from"] = "setup"

    async def finalize(self, trace: vf.Trace) -> None:
        trace.info["from"] += " finalize"

    @vf.metric"""
    env = environment(
        ("    @vf.metric", hooks), ("float(len(trace.last_reply))", 'float(trace.info["from"] == "setup finalize")')
    )
    assert reward(env, "0").metrics["length"] == 1.0


# Rows and prompts


def test_the_example_passes_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    options = {"env": "someone/animal-or-plant@0.1.0", "examples": "1", "held_out": "0.4"}
    check_task("verifiers", options, gold=lambda row: row["answer"])
    loaded = Task.load("verifiers", options)
    question, *_ = loaded.collate(list(loaded.load_rows("train", None) or []))[0]
    assert loaded.template(question)[:3] == [
        {"role": "system", "content": "Say whether a word names an animal or a plant."},
        {"role": "user", "content": "dog:"},
        {"role": "assistant", "content": "animal"},
    ]
    assert len(question) == 4


@pytest.mark.parametrize(
    ("options", "train", "held_out"),
    [
        ({}, 18, 2),
        ({"held_out": "0.4"}, 12, 8),
        ({"held_out": "0.01"}, 19, 1),
        ({"held_out": "7"}, 13, 7),
        ({"num_tasks": "200", "max_rows": "50"}, 45, 5),
        ({"eval.split": "test"}, 20, 20),
        ({"split": "test", "eval.split": "train"}, 20, 20),
        ({"eval.num_tasks": "5"}, 15, 5),
        ({"eval.num_tasks": "5", "eval.split": "test", "held_out": "19"}, 20, 5),
    ],
)
def test_held_out_rows_are_never_training_rows(environment: Environment, options, train, held_out) -> None:
    parts = rows(environment(), **options)
    assert (len(parts[0]), len(parts[1])) == (train, held_out)
    prompts = [{row["prompt"] for row in part} for part in parts]
    assert not prompts[0] & prompts[1]
    same = {"1 plus 3"} if options.get("split") == "test" else {"1 plus 1"} if options.get("eval.split") else set()
    assert same <= prompts[0]


def test_equal_rows_stay_together_and_new_rows_move_no_others(environment: Environment) -> None:
    env = environment(("range(self.config.num_tasks)", "[n // 2 for n in range(self.config.num_tasks)]"))
    held = [{row["prompt"] for row in rows(env, num_tasks=n, held_out=0.5)[1]} for n in (40, 44)]
    assert len(held[0]) == 10
    assert len(rows(env, num_tasks=40, held_out=0.5)[1]) == 20
    assert len(held[0] & held[1]) >= 9


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"held_out": "20"}, "all 20 rows of environment '{env}' are held out for evaluation; lower held_out, or"),
        ({"eval.words": '["plus", "and"]'}, "all 20 rows of environment '{env}' are held out"),
        ({"held_out": "-1"}, "held_out must be a share below 1 or a number of rows, not -1"),
        ({"held_out": "1.5"}, "held_out must be a share below 1 or a number of rows, not 1.5"),
        ({"max_rows": "-1"}, "max_rows must be 0 or more, not -1"),
        ({"num_tasks": "0"}, "environment '{env}' has no tasks with these arguments"),
        ({"words": "[]"}, "environment '{env}' cannot load its tasks [IndexError: list index out of range]"),
    ],
)
def test_rows_that_cannot_be_had(environment: Environment, options: dict[str, str], expected: str) -> None:
    env = environment()
    with pytest.raises(UserError, match=re.escape(expected.format(env=env))) as caught:
        rows(env, **options)
    assert "\n" not in str(caught.value)


def test_an_endless_environment_needs_a_limit(environment: Environment) -> None:
    env = environment(
        ("    def load", "    INFINITE = True\n\n    def load"),
        ("        return [", "        return ("),
        ("\n        ]", "\n        )"),
        ("range(self.config.num_tasks)", "__import__('itertools').count()"),
    )
    with pytest.raises(UserError, match="has no end; limit it with --task-option max_rows=N"):
        rows(env)
    assert [len(part) for part in rows(env, max_rows=30)] == [27, 3]


def test_without_held_out_rows_an_evaluation_set_is_asked_for(environment: Environment) -> None:
    loaded = task(environment(), held_out=0)
    assert len(load_batch_source(loaded, None, batch_size=4, seed=0).prompts) == 20
    with pytest.raises(UserError, match="--eval-dataset"):
        load_eval_splits(loaded, None, None)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "1 + 1", "answer": 2}, None),
        ({"prompt": [{"role": "user", "content": "1 + 1"}], "system_prompt": "Add.", "answer": 2}, None),
        ({"prompt": "1 + 1"}, "row 1 is no SumsData of environment '{env}' [answer: Field required]"),
        ({"answer": 2}, "environment '{env}' waits for a user to begin the conversation (row 1 has no prompt)"),
    ],
)
def test_rows_of_a_file_are_data_of_the_environment(environment: Environment, tmp_path, row, expected) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    env = environment()
    if expected is None:
        loaded = load_batch_source(task(env), str(file), batch_size=1, seed=0)
        assert loaded.targets == [row]
        assert loaded.prompts[0][-1] == {"role": "user", "content": "1 + 1"}
    else:
        with pytest.raises(UserError, match=re.escape(expected.format(env=env))):
            load_batch_source(task(env), str(file), batch_size=1, seed=0)


# Arguments


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (20, "train", ["plus"], None, 1.0, 0.25)),
        ({"num_tasks": "3", "split": "test"}, (3, "test", ["plus"], None, 1.0, 0.25)),
        ({"words": '["and"]', "note": "12"}, (20, "train", ["and"], "12", 1.0, 0.25)),
        ({"task.tolerance": "2"}, (20, "train", ["plus"], None, 2.0, 0.25)),
        ({"task.near": "0.5"}, (20, "train", ["plus"], None, 1.0, 0.5)),
        ({"task.tolerance": 3, "note": "a=b"}, (20, "train", ["plus"], "a=b", 3.0, 0.25)),
    ],
)
def test_arguments_reach_the_environment(environment: Environment, given, expected) -> None:
    from esplug_tasks_verifiers import arguments
    from esplug_tasks_verifiers.environment import load

    env = environment()
    options = task(env, **given).options
    config = load(env, tuple(arguments.of_split(options, "train").items())).config
    found = (config.num_tasks, config.split, config.words, config.note, config.task.tolerance, config.task.near)
    assert found == expected
    assert Task.load("verifiers", {name: str(value) for name, value in options.items()}).options == options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_task": "3"}, "task 'verifiers' has no option 'num_task'; did you mean 'num_tasks'? (env, held_out"),
        ({"eval.splt": "test"}, "has no option 'eval.splt'; did you mean 'eval.split'?"),
        ({"eval.task.near": "1"}, "has no option 'eval.task.near'; did you mean 'task.near'?"),
        ({"num_tasks": "many"}, "option 'num_tasks' must be int, not 'many'"),
        (
            {"split": "tset"},
            "environment '{env}' does not take its arguments [split: Input should be 'train' or 'test']",
        ),
        (
            {"eval.split": "tset"},
            "environment '{env}' does not take its arguments [split: Input should be 'train' or 'test']",
        ),
        ({"words": "and"}, "environment '{env}' does not take its arguments [words: Input should be a valid list]"),
        ({"task.metrics": "3"}, "[task.metrics: Input should be a valid dictionary]"),
        ({"task.rewards": '{"x": {"weight": 1}}'}, "reward 'x' plugs no `fn` and the task has no @vf.reward"),
        ({"task.judges": "[]"}, "has no option 'task.judges'"),
        ({"id": "x"}, "has no option 'id'"),
    ],
)
def test_arguments_that_the_environment_does_not_take(environment: Environment, given, expected) -> None:
    env = environment()
    with pytest.raises(UserError, match=re.escape(expected.format(env=env))) as caught:
        rows(env, **given)
    assert "\n" not in str(caught.value)


def test_a_required_argument_is_asked_for(environment: Environment) -> None:
    env = environment(("num_tasks: int = 20", "num_tasks: int"))
    with pytest.raises(UserError, match=f"environment '{env}' needs --task-option num_tasks=VALUE"):
        task(env).defaults()
    assert len(rows(env, num_tasks="10")[0]) == 9


def test_without_an_environment_one_is_asked_for(monkeypatch, capfd) -> None:
    status, _, err = run_cli(monkeypatch, capfd, "train", "--task", "verifiers")
    assert (status, err) == (
        2,
        "error: task 'verifiers': name an installed environment: --task-option env=NAME\n",
    )


# Refusals

JUDGE = "\n\nclass CorrectJudge(vf.Judge[bool]):\n    prompt = '{response}'\n"
TOOLS = """

class Calculator(vf.Toolset[vf.ToolsetConfig]):
    @vf.tool
    def add(self, a: int, b: int) -> int:
        return a + b
"""
OFFER = "    @classmethod\n    def toolsets(cls, config):\n        return [Calculator(vf.ToolsetConfig())]\n\n"
INTERCEPT = "    @vf.intercept\n    async def clean(self, response: vf.Response):\n        pass\n\n"
PROMPT = 'prompt=f"{n} {self.config.words[0]} {first}"'
IMAGE = 'vf.ImageUrlContentPart(image_url=vf.ImageUrlSource(url="x"))'
REFUSED = {
    "tools of a task": (
        [
            (IMPORT, IMPORT + TOOLS),
            (
                "class SumsTask(vf.Task[SumsData, vf.State, SumsTaskConfig]):\n",
                "class SumsTask(vf.Task[SumsData, vf.State, SumsTaskConfig]):\n" + OFFER,
            ),
        ],
        "gives the model tools (Calculator)",
    ),
    "tools of a taskset": (
        [
            (IMPORT, IMPORT + TOOLS),
            ("    def load", OFFER + "    def load"),
        ],
        "gives the model tools (Calculator)",
    ),
    "container": (
        [("    @vf.metric", "    NEEDS_CONTAINER = True\n\n    @vf.metric")],
        "needs a sandbox (SumsTask.NEEDS_CONTAINER)",
    ),
    "image": ([("answer=n + first)", 'answer=n + first, image="python:3.12")')], "needs a sandbox (image of row 1)"),
    "reward in a sandbox": (
        [("near(self, task, trace)", "near(self, task, trace, runtime)")],
        "needs a sandbox (near takes a runtime)",
    ),
    "set-up in a sandbox": (
        [("    @vf.metric", "    async def setup(self, trace, runtime):\n        pass\n\n    @vf.metric")],
        "needs a sandbox (setup takes a runtime)",
    ),
    "judge of the configuration": (
        [("    near: float = 0.5", "    near: float = 0.5\n    judge: vf.JudgeConfig = vf.JudgeConfig()")],
        "asks a judge model (JudgeConfig)",
    ),
    "plugged judge": (
        [("SumsTaskConfig(near=0.25)", "SumsTaskConfig(judges=[vf.ReferenceJudgeConfig(id='reference')])")],
        "asks a judge model (ReferenceJudgeConfig)",
    ),
    "judge of a reward": (
        [
            (IMPORT, IMPORT + JUDGE),
            ("return float(trace.last", "await CorrectJudge().evaluate()\n        return float(trace.last"),
        ],
        "asks a judge model (CorrectJudge)",
    ),
    "judge of a method": (
        [("    @vf.metric", "    def ask(self):\n        return [vf.RubricJudge() for _ in 'a']\n\n    @vf.metric")],
        "asks a judge model (RubricJudge)",
    ),
    "messages changed": (
        [("    @vf.metric", INTERCEPT + "    @vf.metric")],
        "changes messages between the model and the environment (clean)",
    ),
    "no reward": (
        [("@vf.reward(weight=2.0)", "@vf.metric"), ("@vf.reward(weight=0.5)", "@vf.metric")],
        "has no reward: SumsTask has no method with @vf.reward",
    ),
    "no task class": (
        [("vf.Taskset[SumsTask, SumsConfig]", "vf.Taskset")],
        "has no reward: SumsTaskset names no Task class",
    ),
    "user begins": (
        [(PROMPT + ", ", "")],
        "waits for a user to begin the conversation (row 1 has no prompt)",
    ),
    "images": (
        [(PROMPT, f"prompt=[vf.UserMessage(content=[{IMAGE}])]")],
        "has images in its prompts (row 1)",
    ),
    "tool calls": (
        [(PROMPT, 'prompt=[vf.ToolMessage(tool_call_id="1", content="2")]')],
        "has tool calls in its prompts (row 1)",
    ),
    "another task class": (
        [("            SumsTask(", "            type('Other', (SumsTask,), {})(")],
        "is a Other with SumsData; its Taskset declares SumsTask",
    ),
    "tasks with arguments of their own": (
        [("answer=n + first), self.config.task)", "answer=n + first), SumsTaskConfig(tolerance=n))")],
        "task 1 of environment '{env}' has another tolerance than the argument task.tolerance; its Taskset must",
    ),
    "data lost": (
        [("    answer: int\n", "    answer: int = vf.ID and __import__('pydantic').Field(0, exclude=True)\n")],
        "changes when it is written as JSON",
    ),
}  # fmt: skip
EXPORTS = {
    "several turns": (
        "class GuessEnv(vf.Env[vf.SingleAgentEnvConfig]):\n    async def run(self, task, agents):\n        pass\n",
        "has several turns or agents (GuessEnv)",
    ),
    "own program": (
        "class OwnHarness(vf.Harness[vf.HarnessConfig]):\n    async def launch(self, *a):\n        pass\n",
        "runs the model in a program of its own (a Harness)",
    ),
}
BROKEN = {
    "classic": (
        "def load_environment(**kwargs):\n    pass\n",
        "environment '{env}' has load_environment(), of the API before verifiers 0.4; this task needs an",
    ),
    "classic import": (
        "from verifiers import SingleTurnEnv\n",
        "of verifiers 0.4",
    ),
    "missing library": (
        "import esplug_no_such_module\n",
        "'{env}' cannot be imported [ModuleNotFoundError: No module named 'esplug_no_such_module']; install what is",
    ),
    "no export": ("pass\n", "is no environment [AttributeError: taskset module"),
    "exit": ("raise SystemExit(3)\n", "SystemExit: 3"),
}


def refusal(env: str) -> str:
    """Return the one line that refuses an environment."""
    with pytest.raises(UserError) as caught:
        load_first(env)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load_first(env: str) -> None:
    loaded = task(env)
    loaded.defaults()
    load_batch_source(loaded, None, batch_size=1, seed=0)


@pytest.mark.parametrize("case", REFUSED)
def test_an_environment_that_needs_more_than_one_answer_is_refused(environment: Environment, case: str) -> None:
    changes, expected = REFUSED[case]
    env = environment(*changes)
    message = refusal(env)
    assert f"environment '{env}'" in message
    assert expected.format(env=env) in message


@pytest.mark.parametrize("case", EXPORTS)
def test_an_environment_that_exports_more_than_a_taskset_is_refused(environment: Environment, case: str) -> None:
    source, expected = EXPORTS[case]
    name = source.split("(")[0].removeprefix("class ")
    exports = f"{IMPORT}{source}\nfrom .taskset import SumsTaskset\n__all__ = ['SumsTaskset', '{name}']\n"
    assert expected in refusal(environment(exports=exports))


@pytest.mark.parametrize("case", BROKEN)
def test_a_package_that_is_no_environment(environment: Environment, case: str) -> None:
    exports, expected = BROKEN[case]
    env = environment(exports=exports)
    assert expected.format(env=env) in refusal(env)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ("esplug-no-such-env", "no environment 'esplug-no-such-env' is installed (no module 'esplug_no_such_env')"),
        ("someone/esplug-no-such-env@2", "(no module 'esplug_no_such_env'); install the package that has it"),
        ("json", "module 'json' is no environment [TypeError: taskset module 'json' exports no Taskset subclass"),
        ("nemo-gym", "environment 'nemo-gym' has several turns or agents (NeMoGymEnv)"),
        ("openenv", "environment 'openenv' has several turns or agents (OpenEnvEnv)"),
        ("harbor", "environment 'harbor' has several turns or agents (HarborEnv)"),
    ],
)
def test_other_names(env: str, expected: str) -> None:
    assert expected in refusal(env)


def test_the_folder_around_a_package_is_told_from_the_package(environment: Environment, monkeypatch, tmp_path) -> None:
    env = environment()
    for path in list(sys.path):
        if path == str(tmp_path / env.replace("-", "_")):
            monkeypatch.syspath_prepend(tmp_path)
            sys.path.remove(path)
    assert refusal(env).endswith(
        f"is no package but a folder around one; install it: pip install {tmp_path / env.replace('-', '_')}"
    )


def test_a_run_is_refused_before_its_engines_start(environment: Environment, monkeypatch, capfd, tmp_path) -> None:
    env = environment(*REFUSED["tools of a task"][0])
    monkeypatch.chdir(tmp_path)
    for command in ("train", "eval"):
        arguments = ["--task", "verifiers", "--task-option", f"env={env}", "--model-name", "no-such-model"]
        status, _, err = run_cli(monkeypatch, capfd, command, *arguments)
        assert (status, err) == (
            2,
            f"error: task 'verifiers': environment '{env}' gives the model tools (Calculator), but this task takes one "
            "text answer to each prompt; choose an environment without tools, sandbox, judge model or further turns\n",
        )
    assert not list(tmp_path.glob("experiments*"))


def test_the_package_is_light_until_an_environment_is_named() -> None:
    code = (
        "import sys; from esplug.cli.plugins import render; assert 'verifiers' in render();"
        "assert not {'verifiers', 'esplug_tasks_verifiers'} & set(sys.modules);"
        "from esplug.plugins.task import Task; Task.load('verifiers');"
        "assert 'verifiers' not in sys.modules and 'openai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

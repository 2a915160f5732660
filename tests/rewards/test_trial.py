"""A reward function that can grade nothing is refused before a run; one that fails on odd answers is not."""

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import cloudpickle
import pytest

from esplug.errors import UserError
from esplug.plugins.task import Task
from esplug.rewards import RewardPool
from esplug.rewards.trial import texts_in, try_reward
from tests.helpers.rewards import nothing_left

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no grader need import this file, and pytest with it


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


def tried(reward: Any, target: Any = "7", targets: list[Any] | None = None, **settings: Any) -> None:
    with RewardPool(reward, **{"timeout": 5, "processes": 1} | settings) as pool:
        try_reward(pool, [target] if targets is None else targets)


def one_argument(output: str) -> float:
    return 1.0


def three_arguments(output: str, target: Any, model: Any) -> float:
    return 1.0


def raising(output: str, target: Any) -> float:
    return float(target["answer"])


def nothing(output: str, target: Any) -> None:
    print(output)


async def stream(output: str, target: Any) -> Any:
    yield 1.0


async def unknown(output: str, target: Any) -> Any:
    return one_argument(output, target)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (one_argument, ["reward function one_argument cannot grade", "takes 1 positional argument but 2 were given"]),
        (three_arguments, ["missing 1 required positional argument: 'model'", "must take (model_output, target)"]),
        (raising, ["TypeError: string indices must be integers", " of raising]"]),
        (unknown, ["takes 1 positional argument but 2 were given", " of unknown]"]),
        (nothing, ["the reward must be a number, not NoneType", "return a number"]),
        (stream, ["the reward must be a number, not async_generator"]),
        (7, ["the reward function int cannot grade", "'int' object is not callable"]),
        (lambda output, target: output, ["the reward must be a number, not str"]),
        (lambda output, target: float("nan"), ["NonFinite"]),
        (lambda output, target: 1 / 0, ["ZeroDivisionError"]),
        (lambda output, target: sys.exit("bye\x1b[31m\nbye"), ["[SystemExit: bye␛[31m bye, at line"]),
    ],
)
def test_a_function_that_grades_nothing_is_one_line(reward, words) -> None:
    with pytest.raises(UserError) as caught:
        tried(reward)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()
    assert "Traceback" in str(caught.value.__cause__)


def needs_json(output: str, target: Any) -> float:
    import json

    return float(json.loads(output) == target)


def needs_answer(output: str, target: Any) -> float:
    return float(output.split("<answer>")[1].split("</answer>")[0] == target)


def refuses_no_answer(output: str, target: Any) -> float:
    if output:
        raise ValueError("such an answer cannot be")
    return 0.0


async def awaits(output: str, target: Any) -> float:
    return float(output == target)


@pytest.mark.parametrize(
    ("reward", "target"),
    [
        (lambda output, target: 0.0, None),
        (needs_json, 7),
        (needs_answer, "7"),
        (needs_answer, {"answer": "7", "other": [1]}),
        (refuses_no_answer, object()),
        (awaits, "7"),
    ],
)
def test_a_function_that_fails_on_odd_answers_may_run(reward, target) -> None:
    tried(reward, target)


def test_a_function_that_is_always_too_slow_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[no answer within 0.3 s\]; .*--reward-function-timeout"):
        tried(lambda output, target: time.sleep(60), timeout=0.3)


def test_a_function_that_is_slow_only_at_first_may_run(tmp_path) -> None:
    def once(output: str, target: Any) -> float:
        from pathlib import Path

        if not Path(target).exists():
            Path(target).touch()
            time.sleep(60)
        return 1.0

    tried(once, str(tmp_path / "loaded"), timeout=0.5)


def test_a_bad_first_target_is_not_the_functions_fault() -> None:
    tried(lambda output, target: 1 / target, targets=[0, 0, 0, 2, 0])
    with pytest.raises(UserError, match="ZeroDivisionError"):
        tried(lambda output, target: 1 / target, targets=[0, 0, 0, 0, 2])


def test_a_tasks_reward_is_named_by_its_plugin() -> None:
    name = RewardPool(Task.load("countdown").reward, timeout=1).name
    assert name.startswith("the reward of task 'countdown' (esplug")


def test_the_name_of_a_reward_function_shows_no_arguments() -> None:
    assert RewardPool(partial(partial(raising, key="secret"), "x"), timeout=1).name == "the reward function raising"


def test_a_function_that_works_is_called_once(tmp_path) -> None:
    def counting(output: str, target: Any) -> float:
        with open(target, "a") as file:
            file.write("x")
        return 1.0

    tried(counting, str(tmp_path / "calls"))
    assert (tmp_path / "calls").read_text() == "x"


@pytest.mark.parametrize(
    ("target", "texts"),
    [("7", 3), (7.5, 3), (["a", " ", 2], 6), ({"x": 1, "y": None}, 3), (None, 0), (True, 0), (list("abcdefgh"), 15)],
)
def test_the_texts_of_a_target_are_tried_in_usual_forms(target, texts) -> None:
    assert len(texts_in(target)) == texts

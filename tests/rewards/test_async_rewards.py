"""Asynchronous reward functions are awaited, with the limits and results of any other."""

import asyncio
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import cloudpickle
import pytest

from esplug.hookspecs import Reward
from tests.helpers.rewards import grade, nothing_left

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no grader need import this file, and pytest with it


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


async def reward(output: str, target: Any, bonus: float = 0.0) -> Any:
    await asyncio.sleep(0)
    return bonus + float(output == target)


class Judge:
    async def __call__(self, output: str, target: Any) -> float:
        return await reward(output, target)

    async def method(self, output: str, target: Any) -> float:
        return await reward(output, target)


class Awaitable:
    def __init__(self, value: float) -> None:
        self.value = value

    def __await__(self) -> Iterator[Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


async def labelled(output: str, target: Any) -> tuple[str, float]:
    return "right", 1.0


async def whole(output: str, target: Any) -> Reward:
    return Reward(1.0, "right", True, {"n": 2})


async def no_fast(output: str, target: Any, fast: bool = True) -> float:
    return 1.0 - fast


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (reward, Reward(1.0)),
        (partial(reward, bonus=0.5), Reward(1.5)),
        (Judge(), Reward(1.0)),
        (Judge().method, Reward(1.0)),
        (lambda output, target: reward(output, target), Reward(1.0)),
        (lambda output, target: Awaitable(0.25), Reward(0.25)),
        (lambda output, target: asyncio.run(reward(output, target)), Reward(1.0)),
        (labelled, Reward(1.0, "right")),
        (whole, Reward(1.0, "right", True, {"n": 2})),
        (no_fast, Reward(1.0)),
    ],
)
def test_a_result_is_awaited(function, expected) -> None:
    grades = grade(function, ["a", "a"], ["a", "a"])
    assert [each.reward for each in grades] == [expected] * 2
    assert not any(each.failed for each in grades)


def test_all_answers_of_a_process_share_an_event_loop() -> None:
    loops: list[Any] = []

    async def same_loop(output: str, target: Any) -> float:
        loops.append(asyncio.get_running_loop())
        return float(loops[-1] is loops[0]) * len(loops)

    assert [each.reward.value for each in grade(same_loop, ["a"] * 3)] == [1, 2, 3]


async def misbehaving(output: str, target: Any) -> Any:
    await asyncio.sleep(0)
    match output:
        case "raise":
            raise KeyError("x")
        case "exit":
            raise SystemExit(3)
        case "cancel":
            raise asyncio.CancelledError
        case "sleep":
            await asyncio.sleep(600)
        case "block":
            time.sleep(600)
        case "none":
            return None
        case "leftover":
            asyncio.get_running_loop().create_task(asyncio.sleep(600))
    return 1.0


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("raise", "error:KeyError"),
        ("exit", "error:SystemExit"),
        ("cancel", "error:CancelledError"),
        ("sleep", "timeout"),
        ("block", "timeout"),
        ("none", "error:TypeError"),
        ("leftover", ""),
    ],
)
def test_a_failure_costs_only_its_own_answer(output, label) -> None:
    grades = grade(misbehaving, ["fine", output, "fine", "fine"], timeout=1)
    assert [each.reward.label for each in grades] == ["", label, "", ""]
    assert [each.failed for each in grades] == [False, label != "", False, False]


def test_an_asynchronous_generator_is_no_reward() -> None:
    async def stream(output: str, target: Any) -> Any:
        yield 1.0

    (only,) = grade(stream, ["a"])
    assert only.reward.label == "error:TypeError"
    assert "must be a number, not async_generator" in (only.traceback or "")

"""Rewards that await a server are graded many at once; a failure costs only its own answer; one can stop a run."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from esplug import StopRun
from esplug.errors import RunError, UserError
from esplug.hookspecs import Reward
from esplug.rewards import RewardPool
from esplug.rewards.trial import try_reward
from tests.helpers.rewards import grade, nothing_left
from tests.helpers.timing import limit, within

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no grader need import this file, and pytest with it

at_once = 0  # of a grading process


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


async def counting(output: str, target: Any) -> Reward:
    """Report how many answers this process grades at once."""
    global at_once
    at_once += 1
    most = at_once
    for _ in range(20):
        await asyncio.sleep(0.01)
        most = max(most, at_once)
    at_once -= 1
    return Reward(float(output), metrics={"at_once": most})


@pytest.mark.parametrize(
    ("concurrency", "processes", "most"), [(None, 1, 1), (1, 2, 1), (8, 1, 8), (9, 2, 5), (3, 8, 1)]
)
def test_as_many_answers_at_once_as_asked_for(concurrency, processes, most) -> None:
    outputs = [str(number) for number in range(30 if most > 1 else 6)]
    grades = grade(counting, outputs, processes=processes, concurrency=concurrency)
    assert [each.reward.value for each in grades] == list(map(float, outputs))
    assert max(each.reward.metrics["at_once"] for each in grades) == most
    assert len({each.grader for each in grades}) <= (concurrency or processes)


def test_slow_rewards_take_no_longer_than_one() -> None:
    async def slow(output: str, target: Any) -> float:
        await asyncio.sleep(1.0)
        return 1.0

    with RewardPool(slow, timeout=5, processes=1, concurrency=40) as pool:
        pool.submit(["a"], [None]).result()  # from here on, the pool knows that the reward awaits
        with within(3.0):
            grades = pool.submit(["a"] * 40, [None] * 40).result()
    assert all(1.0 <= each.seconds < 3.0 for each in grades)


def test_many_replies_and_many_requests_do_not_wait_for_each_other() -> None:
    async def quick(output: str, target: Any) -> tuple[str, float]:
        await asyncio.sleep(0)
        return output[:200], 1.0

    with within(45.0):
        grades = grade(quick, ["a" * 10_000] * 1500, concurrency=700)
    assert {each.reward.value for each in grades} == {1.0}


def test_a_reward_that_does_not_await_has_the_time_limit_to_itself() -> None:
    def blocking(output: str, target: Any) -> float:
        time.sleep(0.2)
        return 1.0

    grades = grade(blocking, ["a"] * 12, timeout=2, concurrency=12)
    assert [each.reward for each in grades] == [Reward(1.0)] * 12
    limit(max(each.seconds for each in grades), 1.0)


async def misbehaving(output: str, target: Any) -> Any:
    await asyncio.sleep(0.05)
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
        case "die":
            os._exit(1)
        case "task exits":
            asyncio.get_running_loop().create_task(misbehaving("exit", None))
            await asyncio.sleep(600)
        case "memory":
            return len(bytearray(1 << 40))
        case "none":
            return None
        case "time out":
            raise TimeoutError("its own")
    return 1.0


@pytest.mark.parametrize(
    ("output", "label"),
    [
        ("raise", "error:KeyError"),
        ("exit", "error:SystemExit"),
        ("cancel", "error:CancelledError"),
        ("sleep", "timeout"),
        ("block", "timeout"),
        ("die", "error:ProcessDied"),
        ("task exits", "error:ProcessDied"),
        ("memory", "error:MemoryError"),
        ("none", "error:TypeError"),
        ("time out", "error:TimeoutError"),
    ],
)
def test_a_failure_costs_only_its_own_answer(output, label) -> None:
    outputs = ["fine", "fine", output, "fine"]
    grades = grade(misbehaving, outputs, timeout=1, concurrency=8, memory=1)
    assert [each.reward.label for each in grades] == [label if each == output else "" for each in outputs]
    assert [each.failed for each in grades] == [each == output for each in outputs]


def test_memory_is_limited_over_all_answers_of_a_process() -> None:
    async def hoard(output: str, target: Any) -> float:
        await asyncio.sleep(0.1)
        for _ in range(2 * (output == "fork")):
            if os.fork() == 0:
                _held = b"x" * (300 << 20)
                time.sleep(600)
        await asyncio.sleep(20 * (output == "fork"))
        return 1.0

    grades = grade(hoard, ["a", "fork", "b"], timeout=30, concurrency=4, memory=0.5)
    assert [each.reward.label for each in grades] == ["", "error:MemoryError", ""]


def test_an_answer_that_finds_the_memory_full_of_another_is_graded_alone() -> None:
    async def hoard(output: str, target: Any) -> float:
        await asyncio.sleep(0.1 * float(output))
        _held = bytearray(700 << 20 if float(output) else 0)
        await asyncio.sleep(0.5)
        return 1.0

    grades = grade(hoard, ["0", "1", "2"], timeout=10, processes=1, concurrency=4, memory=1)
    assert [each.reward for each in grades] == [Reward(1.0)] * 3


def test_the_pool_closes_while_answers_are_pending() -> None:
    async def endless(output: str, target: Any) -> float:
        await asyncio.sleep(600)
        return 1.0

    with RewardPool(endless, timeout=600, processes=2, concurrency=8) as pool:
        pending = pool.submit(["a"] * 20, [None] * 20)
        time.sleep(0.3)
    with pytest.raises(RunError, match="was closed"):
        pending.result()


async def unavailable(output: str, target: Any) -> float:
    if output == "stop":
        raise StopRun("the judge does not reply;\n start it")
    return 1.0


def unavailable_now(output: str, target: Any) -> float:
    return asyncio.run(unavailable(output, target))


async def unavailable_to_a_task(output: str, target: Any) -> float:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(unavailable(output, target))
    return task.result()


@pytest.mark.parametrize(
    ("reward", "concurrency"),
    [(unavailable, None), (unavailable, 8), (unavailable_now, None), (unavailable_to_a_task, 8)],
)
def test_a_reward_can_stop_the_run(reward, concurrency) -> None:
    with RewardPool(reward, timeout=5, processes=1, concurrency=concurrency) as pool:
        assert pool.submit(["fine"], [None]).result()[0].reward == Reward(1.0)
        pending = pool.submit(["fine", "stop", "fine"], [None] * 3)
        message = f"the reward function {reward.__qualname__} stopped the run: the judge does not reply; start it"
        with pytest.raises(RunError) as caught:
            pending.result()
        assert str(caught.value) == message
        with pytest.raises(RunError, match="does not reply"):  # so a run stops at its next answers
            pool.submit(["fine"], [None])


def test_before_the_run_the_stop_is_an_error_of_the_user() -> None:
    def refused(output: str, target: Any) -> float:
        raise StopRun("the judge refuses the key; set JUDGE_KEY")

    with RewardPool(refused, timeout=5, processes=1) as pool, pytest.raises(UserError, match="set JUDGE_KEY"):
        try_reward(pool, [None])


def stop_at_import() -> None:
    raise StopRun


class StopsAtImport:
    def __reduce__(self) -> Any:
        return stop_at_import, ()

    def __call__(self, output: str, target: Any) -> float:
        return 1.0


def test_a_stop_without_a_message_at_import_is_an_error_of_the_user() -> None:
    with pytest.raises(UserError, match=r"does not load in another process \(it raised StopRun\)"):
        RewardPool(StopsAtImport(), timeout=5, processes=1).start()


def test_an_invalid_concurrency_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1, not 0"):
        RewardPool(max, timeout=1, concurrency=0)

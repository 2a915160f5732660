"""Grading under hostile reward functions: every answer gets its due, and nothing is left behind."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

from esplug.errors import RunError, UserError
from esplug.hookspecs import Reward
from esplug.rewards import Graded, PendingRewards, RewardPool
from esplug.rewards.replies import LABEL_LENGTH, NonFinite, as_reward
from tests.helpers.rewards import gone_within, grade, graders, leaves_sleepers, nothing_left
from tests.helpers.timing import within

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no grader need import this file, and pytest with it


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with nothing_left():
        yield


def test_rewards_come_in_order() -> None:
    with RewardPool(lambda output, target: int(output) - target, timeout=5, processes=3) as pool:
        batches = [pool.submit([str(i) for i in range(512)], list(range(j, j + 512))) for j in range(3)]
        for j, pending in enumerate(batches):
            assert [graded.reward.value for graded in pending.result()] == [-j] * 512
            assert pending.done()
        assert pool.submit([], []).result() == []


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (True, Reward(1.0)),
        (np.float32(0.5), Reward(0.5)),
        (np.array(2), Reward(2.0)),
        (("right", 1), Reward(1.0, "right")),
        (({"label": "right", "n": 1, "ok": True, "why": "x"}, 0.5), Reward(0.5, "right", None, {"n": 1, "ok": 1})),
        (({"a": 1.5}, 0.5), Reward(0.5, "", None, {"a": 1.5})),
        (Reward(1, "x", np.bool_(1), {"n": np.int64(3)}), Reward(1, "x", True, {"n": 3})),  # type: ignore[arg-type,dict-item]
        (("y" * 500 + "\ud800", 1), Reward(1.0, "y" * LABEL_LENGTH)),
        (("\ud800", 1), Reward(1.0, "?")),
        (None, TypeError),
        ("1", TypeError),
        (b"1", TypeError),
        (np.str_("1"), TypeError),
        (1j, TypeError),
        ((1.0, "swapped"), TypeError),
        (("a", "b"), TypeError),
        (Reward(1.0, metrics={"m": "x"}), TypeError),  # type: ignore[dict-item]
        (Reward(math.nan), NonFinite),
        (({"m": math.inf}, 1.0), NonFinite),
        (-1e160, NonFinite),
        (1e100, Reward(1e100)),
    ],
)  # fmt: skip
def test_what_a_reward_may_return(result: object, expected: Reward | type[Exception]) -> None:
    if isinstance(expected, Reward):
        assert as_reward(result) == expected
    else:
        with pytest.raises(expected):
            as_reward(result)


def test_rewards_cross_the_border_whole() -> None:
    reward = Reward(0.25, "é\ud800\n", False, {"m": 0.1})
    assert grade(lambda *_: reward, ["a"]) == [Graded(Reward(0.25, "é?\n", False, {"m": 0.1}))]


def test_fast_is_false_unless_bound() -> None:
    def reward(output: str, target: Any, fast: bool = True) -> float:
        return float(fast)

    assert grade(reward, ["a"])[0].reward.value == 0
    assert grade(partial(reward, fast=True), ["a"])[0].reward.value == 1
    assert grade(partial(max, 3), ["1"], [2])[0].failed  # max has no signature; it cannot compare str and int


def test_large_answers_do_not_block() -> None:
    sizes = grade(lambda output, target: len(output) + len(target), ["a" * 10**7, "b"], [b"c" * 50_000_000, b""])
    assert [g.reward.value for g in sizes] == [60_000_000, 1]


def test_script_without_main_guard(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from esplug.rewards import RewardPool
            from helper import double

            @dataclass
            class Target:
                value: int

            BONUS = 1

            def reward(output, target):
                assert isinstance(target, Target)
                return double(target.value) + BONUS

            print("imported")
            pool = RewardPool(reward, timeout=5, processes=2)
            pool.start()
            print([graded.reward.value for graded in pool.submit("abc", [Target(i) for i in range(3)]).result()])
            """
        )
    )  # the pool is left open: the interpreter's exit closes it
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, cwd="/")
    assert (done.stdout, done.stderr) == ("imported\n[1.0, 3.0, 5.0]\n", "")


def test_grader_environment() -> None:
    def reward(output: str, target: Any) -> Any:
        return {
            "gpus": len(os.environ["CUDA_VISIBLE_DEVICES"]),
            "path": os.environ.get("PYTHONPATH") == target,
            "files": sum(os.path.lexists(f"/proc/self/fd/{fd}") for fd in range(1024)),
            "main thread": threading.current_thread() is threading.main_thread(),
            "alarm": signal.getsignal(signal.SIGALRM) is signal.SIG_DFL,
        }, 1.0

    metrics = grade(reward, ["a"], [os.environ.get("PYTHONPATH")])[0].reward.metrics
    assert metrics == {"gpus": 0, "path": 1, "files": 4, "main thread": 1, "alarm": 1}


def test_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()
    with pytest.raises(UserError, match="cannot be sent") as caught:
        RewardPool(lambda *_: lock, timeout=1).start()
    assert caught.value.__cause__

    (tmp_path / "sulks.py").write_text(
        "import os\nif os.getpid() != %d:\n    raise OSError('not here')\ndef reward(*_): pass\n" % os.getpid()  # noqa: UP031
    )
    monkeypatch.syspath_prepend(tmp_path)
    import sulks  # type: ignore[import-not-found]

    with pytest.raises(UserError, match=r"does not load.*not here") as caught:
        RewardPool(sulks.reward, timeout=1, processes=3).start()
    assert "sulks.py" in str(caught.value.__cause__)

    with RewardPool(lambda *_: 1.0, timeout=1, processes=1) as pool:
        with pytest.raises(UserError, match=r"target 1 \(lock\) cannot be pickled"):
            pool.submit(["a", "b"], [1, lock])
        with pytest.raises(ValueError, match="shorter"):
            pool.submit(["a", "b"], [1])
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(["a"], [1])
    with pytest.raises(RuntimeError, match="start"):
        RewardPool(max, timeout=1).submit(["a"], [1])
    with pytest.raises(UserError, match="timeout"):
        RewardPool(max, timeout=0)


def test_reward_that_stops_loading_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esplug.rewards.local_graders.MAX_FAILED_STARTS", 2)
    module = tmp_path / "fading.py"
    module.write_text("import os\ndef reward(*_): os._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import fading  # type: ignore[import-not-found]

    with RewardPool(fading.reward, timeout=5, processes=1) as pool:
        module.write_text("raise ImportError('gone')  # and longer than before\n")
        with pytest.raises(RunError, match=r"no longer loads .*gone"):
            pool.submit(["a", "b"], [0, 0]).result()
        with pytest.raises(RunError):
            pool.submit(["a"], [0])


def test_hung_answers_do_not_starve_others() -> None:
    def reward(output: str, target: int) -> float:
        if target % 25 == 7:
            time.sleep(60)
        return 1.0

    with within(2 * 1 + 3):
        graded = grade(reward, [""] * 104, list(range(104)), timeout=1, processes=2)
    assert [i for i, g in enumerate(graded) if g.failed] == [7, 32, 57, 82]


def test_slow_rewards_use_every_process() -> None:
    def reward(output: str, target: Any) -> float:
        time.sleep(0.05)
        return os.getpid()

    with RewardPool(reward, timeout=5, processes=8) as pool:
        while len({graded.reward.value for graded in pool.submit([""] * 8, [0] * 8).result()}) < 8:
            pass
        with within(80 * 0.05 / 3):
            pool.submit([""] * 80, [0] * 80).result()


def test_throughput_survives_kills() -> None:
    def reward(output: str, target: int) -> float:
        return float(target) if target else os._exit(0)

    with RewardPool(reward, timeout=5, processes=2) as pool:
        assert all(g.failed for g in pool.submit([""] * 10, [0] * 10).result())
        with within(5):  # typically 0.4
            assert all(g.reward.value == 1 for g in pool.submit(["x" * 500] * 5000, [1] * 5000).result())


def test_grader_killed_while_idle_fails_no_answer() -> None:
    with RewardPool(lambda *_: 1.0, timeout=5, processes=1) as pool:
        for _ in range(3):
            assert not pool.submit(["a"], [0]).result()[0].failed
            for process in graders():
                process.kill()
                while process.status() != psutil.STATUS_ZOMBIE:
                    time.sleep(0.01)


def test_close_is_quick_and_gives_up_the_rest() -> None:
    pool = RewardPool(lambda *_: leaves_sleepers(), timeout=60, processes=2)
    pool.start()
    pending: PendingRewards = pool.submit(["a"] * 10, [0] * 10)
    time.sleep(0.5)
    family = graders()
    assert not pending.done()
    with within(2):
        pool.close()
        pool.close()
    with pytest.raises(RunError, match="closed before"):
        pending.result()
    assert gone_within(2, family)


def test_fork_of_the_driver_does_not_close_the_pool() -> None:
    with RewardPool(lambda *_: 1.0, timeout=5, processes=1) as pool:
        child = os.fork()
        if child == 0:
            pool.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert not pool.submit(["a"], [0]).result()[0].failed


def test_no_grader_outlives_a_killed_driver() -> None:
    code = """
import ctypes, time
from esplug.rewards import RewardPool
pool = RewardPool(lambda o, t: ctypes.PyDLL(None).pause() if o == "hang" else 1.0, timeout=600, processes=3)
pool.start()
pool.submit(["hang", "hang", "ok"], [0, 0, 0])
time.sleep(0.5)
print("ready", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == b"ready\n"
        family = psutil.Process(driver.pid).children(recursive=True)
        assert len(family) == 6  # with their supervisors
        driver.kill()
    assert gone_within(5, family)

"""Hostile rewards: each kind several times among good answers, which are all graded correctly; no process is left."""

import copy
import ctypes
import itertools
import math
import mmap
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import cloudpickle
import psutil
import pytest

from esplug.errors import UserError
from esplug.hookspecs import Reward
from esplug.rewards import Graded, RewardPool
from esplug.rewards.grader_process import COUNT_EVERY, MAX_DESCENDANTS
from esplug.rewards.replies import TRACEBACK_LENGTH
from esplug.utils.process_tree import memory_exceeds
from tests.helpers.amount import amount
from tests.helpers.rewards import grade, graders, leaves_sleepers, nothing_left
from tests.helpers.timing import within

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules[leaves_sleepers.__module__])

GOOD, TIMES = amount(128, 512), amount(4, 20)
MOST_LEFT = MAX_DESCENDANTS + 3 * COUNT_EVERY  # processes of one grader if every answer leaves three
#: In the environment of all processes that these tests start, or in the arguments of those with another environment.
MARK = f"ESPLUG_TEST={os.getpid()}"
NAP = f"600.{os.getpid()}"
NESTED = eval("[" * 20 + "]" * 20)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(*MARK.split("="))
    with nothing_left():
        yield
    deadline = time.monotonic() + 2
    while (left := strays()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def strays() -> list[str]:
    """Return the commands of processes that these tests started and that still run, whatever their parent."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marked = MARK.split("=")[1] == process.environ().get("ESPLUG_TEST") or NAP in process.cmdline()
            if marked and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.cmdline()}")
    return found


def raises() -> None:
    raise KeyError("x" * 10_000)


def cannot_pickle() -> None:
    class UnpicklableError(Exception):
        def __reduce__(self) -> str:
            raise TypeError("no")

    raise UnpicklableError(socket.socket())


def hangs_in_python() -> None:
    while True:
        with suppress(BaseException):
            time.sleep(60)


def hangs_in_c() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        ctypes.PyDLL(None).pause()  # PyDLL keeps the GIL


def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def dies_with_heirs() -> None:
    if os.fork() == 0:
        time.sleep(600)
    subprocess.run(["sh", "-c", f"setsid env -i sleep {NAP} &"], check=True)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    os._exit(3)


def floods() -> float:
    for _ in range(2000):
        print("x" * 10_000)
        print("x" * 10_000, file=sys.stderr)
    os.system("head -c 10000000 /dev/zero; head -c 10000000 /dev/zero >&2")
    return float(sys.stdin.read() == "")


def returns_twice() -> float:
    child = os.fork()  # the child returns too; it must not continue grading or reply
    if child:
        os.waitpid(child, 0)
    return 1.0 if child else 9.0


def interrupted() -> float:
    os.kill(os.getpid(), signal.SIGINT)
    return 1.0


def blocks_the_alarm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.alarm(1)
    time.sleep(600)


def cannot_be_printed() -> None:
    class Unprintable(Exception):  # noqa: N818 - the label says what was raised
        def __str__(self) -> str:
            raise self

    raise Unprintable


def floods_descriptors() -> float:
    for descriptor, _ in itertools.product((1, 2), range(100)):
        os.write(descriptor, b"x" * 100_000)
    return 1.0


def prints_strange_text() -> float:
    print("\ud800 \x00 \u202e", flush=True)
    print("\udcff", file=sys.stderr, flush=True)
    return 1.0


def daemonises() -> None:
    """Start processes that leave the process group, the session, the parent and the environment."""
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    subprocess.run(["sh", "-c", f"setsid env -i sleep {NAP} &"], check=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)


def leaves_daemons() -> float:
    daemonises()
    return 1.0


def leaves_threads() -> float:
    threading.Thread(target=time.sleep, args=(600,)).start()
    return 1.0


def writes_garbage() -> None:
    garbage = random.choice([b"garbage", b"x" * 2_000_000, b'["much", 1, 2, 3, 4]\n', b"\n" * 9, b"null\n"])
    for descriptor in range(3, 256):
        with suppress(OSError):
            os.write(descriptor, garbage)


def changes_signals() -> float:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0.05)  # unhandled, it kills the process
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    return 1.0


def forbids_recursion() -> float:
    sys.setrecursionlimit(40)
    return 1.0


def deletes_its_directory() -> float:
    os.chdir(tempfile.mkdtemp())
    os.rmdir(os.getcwd())
    return 1.0


def recursion() -> None:
    def dive() -> None:
        dive()

    dive()


def recursion_without_end() -> None:
    sys.setrecursionlimit(10**9)
    recursion()


def fills_an_array() -> None:
    import numpy as np  # imported here, so that the other kinds do not pay for it

    np.ones(50 << 27)


def fills_slowly() -> None:
    held = []
    while True:
        held.append(bytearray(1 << 20))


def shares_memory() -> None:
    held = mmap.mmap(-1, 2 << 30)  # shared memory, which the system's limit does not count
    while True:
        held.write(b"x" * (1 << 20))


def children_fill_up() -> None:
    for _ in range(10):
        if os.fork() == 0:
            os.setsid()
            held = bytearray(80 << 20)
            time.sleep(600)
            del held
    time.sleep(600)


#: Action of the reward, its label (None: a good answer with reward 1.0), words in its traceback.
Kind = tuple[Callable[[], Any], str | None, str]
QUICK: list[Kind] = [
    (raises, "error:KeyError", "KeyError"),
    (cannot_pickle, "error:UnpicklableError", "UnpicklableError"),
    (cannot_be_printed, "error:Unprintable", "Unprintable"),
    (dies_with_heirs, "error:ProcessDied", "exit status 3"),
    (leaves_daemons, None, ""),
    (leaves_threads, None, ""),
    (lambda: ctypes.string_at(0), "error:ProcessDied", "Segmentation fault"),
    (lambda: os._exit(0), "error:ProcessDied", "exit status 0"),
    (lambda: os.closerange(0, 256), "error:ProcessDied", "the grading process"),
    (writes_garbage, "error:ProcessDied", "the grading process"),
    (changes_signals, None, ""),
    (forbids_recursion, None, ""),
    (deletes_its_directory, None, ""),
    (lambda: sys.exit(0), "error:SystemExit", "SystemExit"),
    (lambda: exec("raise KeyboardInterrupt"), "error:KeyboardInterrupt", ""),
    (recursion, "error:RecursionError", ""),
    (lambda: float("nan"), "error:NonFinite", "must be finite"),
    (lambda: ("label", -math.inf), "error:NonFinite", "must be finite"),
    (lambda: None, "error:TypeError", "not NoneType"),
    (lambda: "1.0", "error:TypeError", "not str"),
    (lambda: 10**400, "error:OverflowError", ""),
    (lambda: bytearray(3 << 30), "error:MemoryError", "MemoryError"),
    (fills_an_array, "error:MemoryError", "Unable to allocate"),
    (floods, None, ""),
    (floods_descriptors, None, ""),
    (prints_strange_text, None, ""),
    (returns_twice, None, ""),
    (interrupted, None, ""),
]
SLOW: list[Kind] = [  # kinds that need a while to fill an eighth of a GiB
    (fills_slowly, "error:MemoryError", ""),
    (shares_memory, "error:MemoryError", "used over 0.125 GiB"),
    (children_fill_up, "error:MemoryError", "used over 0.125 GiB"),
]
HANGING: list[Kind] = [
    (hangs_in_python, "timeout", "0.4 s"),
    (hangs_in_c, "timeout", "0.4 s"),
    (blocks_the_alarm, "timeout", "0.4 s"),
    (lambda: re.match(r"(a+)+$", "a" * 40 + "!"), "timeout", "0.4 s"),
    (stops_itself, "timeout", "0.4 s"),
    (leaves_sleepers, "timeout", "0.4 s"),
]


def among_good(kinds: list[Kind], settings: dict[str, Any], seconds: float) -> Any:
    fault = pytest.mark.fault(f"hostile reward among {GOOD} good ones", TIMES * len(kinds), "its own answer")
    return pytest.param(kinds, settings, seconds, marks=fault)


@pytest.mark.more
@pytest.mark.parametrize(
    ("kinds", "settings", "seconds"),
    [
        among_good(QUICK, {"timeout": 20, "memory": 1, "processes": 2}, 180),
        among_good(SLOW, {"timeout": 20, "memory": 0.125, "processes": 4}, 180),
        among_good(HANGING, {"timeout": 0.4, "memory": 1, "processes": 6}, 0.4 * len(HANGING) * TIMES / 6 + 120),
    ],
    ids=["quick", "slow", "hanging"],
)
def test_a_hostile_reward_costs_only_its_own_answer(
    kinds: list[Kind], settings: dict[str, Any], seconds: float
) -> None:
    acts = [act for act, _, _ in kinds]

    def reward(output: str, target: int) -> Any:
        if output == "bad":
            return acts[target]()
        assert os.getcwd()
        copy.deepcopy(NESTED)  # needs deep recursion
        return output, target

    answers = [("good", index) for index in range(GOOD)] + [("bad", index) for index in range(len(kinds))] * TIMES
    random.Random(0).shuffle(answers)
    with within(seconds), RewardPool(reward, **settings) as pool:
        graded = pool.submit([kind for kind, _ in answers], [index for _, index in answers]).result()
        assert len(graders()) <= settings["processes"] * MOST_LEFT
    for (kind, index), found in zip(answers, graded, strict=True):
        if kind == "good":
            assert found == Graded(Reward(index, "good"))
        else:
            _, label, words = kinds[index]
            assert found.reward == (Reward(0.0, label) if label else Reward(1.0)), (index, found)
            assert found.failed == (label is not None)
            assert words in (found.traceback or ""), found
            assert len(found.traceback or "") <= TRACEBACK_LENGTH + 10


@pytest.mark.parametrize(
    ("act", "label"),
    [
        (recursion_without_end, "error:MemoryError"),
        (lambda: bytearray(50 << 30), "error:MemoryError"),
        (lambda: mmap.mmap(-1, 50 << 30, mmap.MAP_PRIVATE), "error:MemoryError"),
        (lambda: os.abort(), "error:ProcessDied"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "error:ProcessDied"),
        (lambda: os.killpg(0, signal.SIGKILL), "error:ProcessDied"),
        (lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(600)), "error:ProcessDied"),
    ],
)
def test_others(act: Callable[[], Any], label: str) -> None:
    graded = grade(lambda output, _: act() if output else 1.0, ["", "bad", ""], memory=0.25, timeout=20)
    assert [each.reward for each in graded] == [Reward(1.0), Reward(0.0, label), Reward(1.0)]


def test_killing_a_grader_kills_its_child_processes() -> None:
    def reward(output: str, target: None) -> float:
        daemonises()
        time.sleep(600)
        return 1.0

    with RewardPool(reward, timeout=0.5, processes=1) as pool:
        assert pool.submit([""], [None]).result()[0].reward.label == "timeout"
        assert len(strays()) <= 2  # the next grader and its supervisor


def test_a_grader_with_too_many_processes_is_replaced() -> None:
    def reward(output: str, target: None) -> int:
        subprocess.Popen(["sleep", "600"])
        return os.getpid()

    values = [each.reward.value for each in grade(reward, [""] * 301)]
    assert [len(list(group)) for _, group in itertools.groupby(values)] == [100, 100, 100, 1]


def test_reward_function_larger_than_the_memory_allowed() -> None:
    ballast = b"x" * (300 << 20)
    with pytest.raises(UserError, match=r"does not load.*give it more than the 0.25 GiB of --reward-memory"):
        RewardPool(lambda *_: len(ballast), timeout=5, memory=0.25, processes=1).start()
    with pytest.raises(UserError, match="memory"):
        RewardPool(max, timeout=5, memory=0)


def test_memory_shared_by_children_counts_once() -> None:
    held = bytearray(100 << 20)
    children = []
    for _ in range(5):
        children.append(os.fork())
        if children[-1] == 0:
            time.sleep(600)
    try:
        assert memory_exceeds(os.getpid(), 90 << 20)
        assert not memory_exceeds(os.getpid(), psutil.Process().memory_info().rss + (100 << 20))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    del held

"""Grading in a pool of processes, and checks that no process, thread or file is left."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import psutil

from esplug.rewards.pool import Graded, RewardPool

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # graders need not import this file


def grade(
    reward: Callable[..., Any], outputs: list[str], targets: list[Any] | None = None, **settings: Any
) -> list[Graded]:
    with RewardPool(reward, **{"timeout": 5, "processes": 1} | settings) as pool:
        return pool.submit(outputs, [None] * len(outputs) if targets is None else targets).result()


def graders() -> list[psutil.Process]:
    return list(psutil.Process().children(recursive=True))


def gone_within(seconds: float, processes: list[psutil.Process]) -> bool:
    alive = psutil.wait_procs(processes, timeout=seconds)[1]
    return all(process.status() == psutil.STATUS_ZOMBIE for process in alive)  # init may be slow to reap


@contextmanager
def nothing_left() -> Iterator[None]:
    def resources() -> tuple[int, int, int]:
        return psutil.Process().num_fds(), threading.active_count(), len(graders())

    before = resources()
    yield
    assert resources() == before


def leaves_sleepers() -> None:
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    if os.fork() == 0:
        time.sleep(600)
    time.sleep(600)

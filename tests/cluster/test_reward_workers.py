"""Graders on other Ray nodes: they grade as those of this machine do, and a lost node loses no grade."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from esplug.errors import UserError
from esplug.rewards import Graded, RewardPool
from esplug.rewards.remote_graders import chosen
from esplug.utils.ray_nodes import RayNode
from tests.helpers.own_process import in_own_process
from tests.helpers.ray_nodes import Nodes

PAUSE, LIMIT = 0.05, 3.0


def grade(output: str, target: int) -> float:
    time.sleep(PAUSE)
    if output == "crash":
        os.abort()
    if output == "hang":
        time.sleep(60)
    if output == "raise":
        raise ValueError(output)
    return float(output) - target


class OnlyHere:
    """A reward function of a package that other nodes lack."""

    def __call__(self, output: str, target: int) -> float:
        return grade(output, target)

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return _load, ()


def _load() -> OnlyHere:
    if "node-" in os.environ.get("XDG_CACHE_HOME", ""):
        raise ModuleNotFoundError("No module named 'esplug_tasks_other'")
    return OnlyHere()


@pytest.mark.vllm
def test_graders_on_other_nodes(tmp_path) -> None:
    in_own_process(_spread, tmp_path)


def _spread(tmp_path: Path) -> None:
    from esplug.engines.cluster import Cluster

    with Nodes(tmp_path / "nodes", watchful=True) as nodes:
        lost, kept = nodes.add(cpus=3), nodes.add(cpus=1)
        cluster = Cluster(nodes.address, None)
        with RewardPool(grade, timeout=LIMIT, memory=1, processes=1) as pool, pool.spread(4, cluster.others):
            _check_grades(pool)
            pending = pool.submit([str(i) for i in range(200)], [1] * 200)
            time.sleep(1)
            nodes.kill(lost)
            graded = pending.result()
            assert [each.reward.value for each in graded] == [i - 1 for i in range(200)]
            assert not any(each.failed for each in graded)
            assert {each.grader for each in graded} == {0, 1, 2, 3, 4}
        while len(cluster.others()) > 1:  # until Ray notices
            time.sleep(0.1)
        with RewardPool(OnlyHere(), timeout=LIMIT, processes=1) as pool, pool.spread(1, cluster.others):
            until = re.escape(f"does not load on node 127.0.0.{kept} (ModuleNotFoundError: ")
            with pytest.raises(UserError, match=rf"{until}.*\); install the same packages there"):
                _grade_forever(pool)
        cluster.close()


def _grade_forever(pool: RewardPool) -> None:
    while True:
        pool.submit(["1"] * 20, [1] * 20).result()


def _check_grades(pool: RewardPool) -> None:
    """Hostile answers fail alone, wherever they are graded."""
    outputs = ["1", "crash", "2", "hang", "3", "raise", *map(str, range(60))] * 2
    began = time.monotonic()
    graded = _settled(pool, outputs)
    assert {each.grader for each in graded} == {0, 1, 2, 3, 4}
    for output, each in zip(outputs, graded, strict=True):
        label = {"crash": "error:ProcessDied", "hang": "timeout", "raise": "error:ValueError"}.get(output, "")
        assert (each.failed, each.reward.label) == (bool(label), label), (output, each)
        assert label or each.reward.value == float(output) - 1
    assert time.monotonic() - began < 60


def _settled(pool: RewardPool, outputs: Sequence[str]) -> list[Graded]:
    """Grade, after all graders have loaded the function."""
    loaded: set[int | None] = set()
    while len(loaded) < 5:
        loaded |= {each.grader for each in pool.submit(["1"] * 20, [1] * 20).result()}
    return pool.submit(outputs, [1] * len(outputs)).result()


def test_graders_are_shared_out_by_cores() -> None:
    nodes = [RayNode("a", "1", 3), RayNode("b", "2", 1)]
    assert [chosen(nodes, turn).id for turn in range(8)] == ["a", "b", "a", "a"] * 2
    assert chosen([], 0) is None

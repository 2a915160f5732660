"""Nodes that die and nodes that join, with real Ray nodes and engines that start quickly."""

import time
from pathlib import Path
from typing import Any

import pytest

from esplug.checkpoints.history import CatchUp, CaughtUp, History
from esplug.checkpoints.seed_log_records import Step
from esplug.engines import EnginePool, Job
from esplug.engines.messages import Completion, EngineSettings, Generation, Sampling, Weights, Work
from esplug.errors import RunError, UserError
from esplug.planning.placement import Plan
from tests.helpers.cluster import Nodes, in_own_process

pytestmark = pytest.mark.vllm

BASE, MEMBERS = 1000, 8


class NodeEngine:
    """An engine whose weights are one number."""

    def __init__(self, log_path: str) -> None:
        self.state = 0

    def location(self) -> tuple[str, int]:
        import ray

        return ray.get_runtime_context().get_node_id(), 2**30

    def pulse(self) -> float:
        return 0.0

    def start(self, settings: Any, share: Any, most: Any, cache: Any, catch_up: CatchUp) -> CaughtUp:
        self.state = BASE + sum(round(1000 * sum(step.coefficients)) for step in catch_up.steps)
        return CaughtUp(BASE, self.state, len(catch_up.steps))

    def generate(self, weights: Any, prompts: Any, seeds: Any, sampling: Any) -> list[Generation]:
        time.sleep(0.2)
        work = (Work(-1, time.time(), 0.01, 0.2),)
        return [
            Generation([Completion(f"{each.member_seed} {self.state}", 1, True) for _ in prompts], work)
            for each in weights
        ]

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        self.state += round(1000 * sum(coefficients))
        return self.state

    def save_here(self, exact: bool) -> str:
        import tempfile

        folder = tempfile.mkdtemp()
        Path(folder, "weights").write_text(str(self.state))
        return folder

    def files(self, folder: str) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in Path(folder).iterdir()]

    def read(self, folder: str, name: str, start: int, count: int) -> bytes:
        return Path(folder, name).read_bytes()[start : start + count]

    def remove(self, folder: str) -> None:
        pass


@pytest.mark.parametrize("name", ["_go_on", "_end"])
def test_nodes_that_die(name, tmp_path) -> None:
    in_own_process(_on_three_nodes, name, tmp_path)


def _on_three_nodes(name: str, tmp_path: Path) -> None:
    import ray

    with Nodes(tmp_path / "nodes") as nodes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnginePool, "engine", NodeEngine)
        nodes.add()
        nodes.add()
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        try:
            {"_go_on": _go_on, "_end": _end}[name](nodes, tmp_path, patch)
        finally:
            ray.shutdown()


def _pool(folder: Path, engines: int = 2, **settings: Any) -> tuple[EnginePool, History]:
    model = EngineSettings("model", "auto", "float32", "auto", "cpu", 1, None, 0.5)
    pool = EnginePool(Plan(engines, "cpu", 0, 1), model, 0, 0, folder, **settings)
    history = History(7)
    history.base = pool.start(history).base
    return pool, history


def _iterate(pool: EnginePool, history: History, during: Any = None) -> list[str]:
    """Do what a trainer does in an iteration; call ``during`` after the first answer."""
    jobs = [Job([i], [Weights(i, 0.1)], [[1, 2]], [0], Sampling(4), 8) for i in range(MEMBERS)]
    answers = {}
    for key, generation in pool.run(jobs):
        answers[key] = generation.completions[0].text
        if during is not None:
            during()
            during = None
    coefficients = (0.5 + len(history.steps), -0.25)
    history.append(Step(len(history.steps), coefficients, False, pool.update([1, 2], list(coefficients))))
    return [answers[i] for i in range(MEMBERS)]


def _there(pool: EnginePool) -> int:
    return sum(slot.ready for slot in pool._slots)


def _go_on(nodes: Nodes, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """A run goes on without a node, and takes in another."""
    said: list[str] = []
    patch.setattr("esplug.engines.lifecycle.say", said.append)
    pool, history = _pool(tmp_path)
    expected = [[f"{i} {BASE + 250 * n + 500 * n * (n - 1)}" for i in range(MEMBERS)] for n in range(90)]
    assert _iterate(pool, history) == expected[0]
    assert _iterate(pool, history, during=lambda: nodes.kill(3)) == expected[1]
    assert _there(pool) == 1
    assert any("its node is gone; going on with 1" in line for line in said)
    assert _iterate(pool, history) == expected[2]
    nodes.add()
    for n in range(3, 90):
        assert _iterate(pool, history) == expected[n]
        if _there(pool) == 2:
            break
        time.sleep(1)
    assert _there(pool) == 2
    assert any("is there again" in line for line in said)
    target = tmp_path / "saved"
    target.mkdir()
    pool.save(target)
    assert (target / "weights").read_text() == str(history.checksum)
    pool.close()


def _end(nodes: Nodes, tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """A run that loses more nodes than it may ends."""
    patch.setattr("esplug.engines.liveness.START_TIMEOUT", 5.0)
    with pytest.raises(UserError, match=r"^--min-engines 3: the run has 2; choose fewer$"):
        _pool(tmp_path, min_engines=3)
    pool, history = _pool(tmp_path, min_engines=2, timeout=5.0)
    _iterate(pool, history)
    with pytest.raises(RunError, match=r"^1 of at least 2 engines are left \(--min-engines\), .* for 5 s; resume"):
        _iterate(pool, history, during=lambda: nodes.kill(2))
    pool.close()

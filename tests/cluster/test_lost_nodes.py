"""Nodes that die and nodes that join, with real Ray nodes and engines that start quickly.

`benchmarks/soak` does the same with real engines.
"""

import threading
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
from tests.helpers.own_process import in_own_process
from tests.helpers.ray_nodes import Nodes, can_hide_folders

pytestmark = pytest.mark.vllm

BASE, MEMBERS, LINGERS = 1000, 8, 1.5


class NodeEngine:
    """An engine whose weights are one number. A file in the run's folder has it take longer for something."""

    def __init__(self, log_path: str) -> None:
        self.state, self.folder = 0, Path(log_path).parents[1]

    def linger(self, where: str) -> None:
        if (self.folder / f"linger-{where}").exists():
            time.sleep(LINGERS)

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
        self.linger("generate")
        work = (Work(-1, time.time(), 0.01, 0.2),)
        return [
            Generation([Completion(f"{each.member_seed} {self.state}", 1, True) for _ in prompts], work)
            for each in weights
        ]

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        self.linger("update")
        self.state += round(1000 * sum(coefficients))
        return self.state

    def save_here(self, exact: bool) -> str:
        import tempfile

        self.linger("save")
        folder = tempfile.mkdtemp()
        Path(folder, "weights").write_text(str(self.state))
        return folder

    def files(self, folder: str) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in Path(folder).iterdir()]

    def read(self, folder: str, name: str, start: int, count: int) -> bytes:
        self.linger("read")
        return Path(folder, name).read_bytes()[start : start + count]

    def remove(self, folder: str) -> None:
        pass


@pytest.mark.parametrize("name", ["_go_on", "_refuse", "_ship", "_end"])
def test_nodes_that_die_and_join(name, tmp_path) -> None:
    if name in ("_refuse", "_ship") and not can_hide_folders():
        pytest.skip("no rights to hide a folder from a process")
    in_own_process(_on_nodes, name, tmp_path)


def _on_nodes(name: str, tmp_path: Path) -> None:
    import ray

    said: list[str] = []
    with Nodes(tmp_path / "nodes", watchful=True) as nodes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnginePool, "engine", NodeEngine)
        patch.setattr("esplug.engines.lifecycle.say", said.append)
        patch.setattr("esplug.engines.joining.say", said.append)
        for _ in range({"_go_on": 5, "_refuse": 1, "_ship": 1, "_end": 2}[name]):
            nodes.add()
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        try:
            {"_go_on": _go_on, "_refuse": _refuse, "_ship": _ship, "_end": _end}[name](nodes, tmp_path, patch, said)
        finally:
            ray.shutdown()


def test_engines_run_on_the_nodes_that_are_asked_for(tmp_path) -> None:
    in_own_process(_on_one_kind_of_node, tmp_path)


def _on_one_kind_of_node(tmp_path: Path) -> None:
    from esplug.engines.cluster import Cluster

    with Nodes(tmp_path / "nodes") as nodes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnginePool, "engine", NodeEngine)
        nodes.add(cpus=3)
        fast = nodes.add(cpus=2, resource="fast")
        cluster = Cluster(nodes.address, None)
        assert [node.cores for node in cluster.resources("fast").nodes] == [2]
        with pytest.raises(UserError, match=r"^--engine-resource slow: no node has that; .*: fast$"):
            cluster.resources("slow")
        pool, _ = _pool(tmp_path, resource="fast")
        places = {work.node for _, generation in pool.run(_jobs()) for work in generation.work}
        assert places == {f"127.0.0.{fast}"}
        pool.close()
        cluster.close()


def _pool(folder: Path, engines: int = 2, **settings: Any) -> tuple[EnginePool, History]:
    model = EngineSettings(str(folder / "model"), "auto", "float32", "auto", "cpu", 1, None, 0.5)
    pool = EnginePool(Plan(engines, "cpu", 0, 1), model, 0, 0, folder, **settings)
    history = History(7)
    history.base = pool.start(history).base
    return pool, history


def _jobs(seed: int | None = None) -> list[Job[int]]:
    return [
        Job([i], [Weights(i if seed is None else seed, 0.1)], [[1, 2]], [0], Sampling(4), 8) for i in range(MEMBERS)
    ]


def _iterate(pool: EnginePool, history: History) -> None:
    """Do what a trainer does in an iteration, and check the answers and the update."""
    count, state = len(history.steps), history.checksum
    answers = {key: generation.completions[0].text for key, generation in pool.run(_jobs())}
    assert answers == {i: f"{i} {state}" for i in range(MEMBERS)}
    coefficients = (0.5 + count, -0.25)
    history.append(Step(count, coefficients, False, pool.update([1, 2], list(coefficients))))
    assert history.checksum == BASE + sum(250 + 1000 * n for n in range(count + 1))


def _evaluate(pool: EnginePool, history: History) -> None:
    answers = [generation.completions[0].text for _, generation in pool.run(_jobs(0))]
    assert answers == [f"0 {history.checksum}"] * MEMBERS


def _save(pool: EnginePool, history: History) -> None:
    folder = pool._folder / f"saved-{time.monotonic()}"
    folder.mkdir()
    pool.save(folder)
    assert (folder / "weights").read_text() == str(history.checksum)


def _there(pool: EnginePool) -> int:
    return sum(slot.ready for slot in pool._slots)


def _node(pool: EnginePool) -> int:
    """Return the number of the node of the first engine, which saves, too."""
    import ray

    first = next(slot for slot in pool._slots if slot.ready)
    (address,) = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == first.node]
    return int(address.rpartition(".")[2])


def _until(condition: Any, pool: EnginePool, history: History, seconds: float = 60.0) -> float:
    """Iterate until something is the case. Returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:g} s"
        _iterate(pool, history)
    return time.monotonic() - began


def _go_on(nodes: Nodes, tmp_path: Path, patch: pytest.MonkeyPatch, said: list[str]) -> None:
    """A run goes on without nodes that it loses at any time, and takes in another."""
    pool, history = _pool(tmp_path, 5)
    _iterate(pool, history)
    faults = {"generate": _iterate, "update": _iterate, "save": _save, "read": _save}
    for left, (where, act) in zip((4, 3, 2, 1), faults.items(), strict=True):
        linger = tmp_path / f"linger-{where}"
        linger.touch()
        if where == "generate":
            act = _evaluate
        delay = LINGERS / 2 + (0.5 if where == "update" else 0.0)  # the answers come first
        death = threading.Timer(delay, nodes.kill, [_node(pool)])
        death.start()
        began = time.monotonic()
        act(pool, history)
        death.join()
        linger.unlink()
        assert time.monotonic() - began < 15
        _iterate(pool, history)
        assert _there(pool) == left, where
    _until(lambda: sum("its node is gone; going on with" in line for line in said) == 4, pool, history)
    assert pool.restarts == 0  # they are not the engines' failures
    nodes.add()
    _until(lambda: _there(pool) == 2, pool, history)
    assert any("is there again" in line for line in said)
    nodes.suspend(_node(pool))
    assert _until(lambda: _there(pool) == 1, pool, history) < 30
    pool.close()


def _refuse(nodes: Nodes, tmp_path: Path, patch: pytest.MonkeyPatch, said: list[str]) -> None:
    """A node that joins without the model is refused until it has it."""
    patch.setattr("esplug.engines.joining._LOOK_AGAIN", 1.0)
    model = _model(tmp_path)
    nodes.add()
    pool, history = _pool(tmp_path)
    nodes.kill(_node(pool))
    _until(lambda: any("its node is gone" in line for line in said), pool, history)
    lacks = nodes.add(hidden=[model])
    _until(lambda: any("model there" in line for line in said), pool, history)
    for _ in range(3):
        _iterate(pool, history)
        time.sleep(1)
    assert _there(pool) == 1
    (line,) = [line for line in said if "model there" in line]
    assert line.startswith(f"node 127.0.0.{lacks}: no {model} there, or another model; copy it to that node, ")
    assert line.endswith(" or add --ship-model. Until then, no engine starts there")
    nodes.reveal(lacks, model)
    _until(lambda: _there(pool) == 2, pool, history)
    assert pool.restarts == 0
    pool.close()


def _ship(nodes: Nodes, tmp_path: Path, patch: pytest.MonkeyPatch, said: list[str]) -> None:
    """With --ship-model, a node that joins without the model gets it."""
    model = _model(tmp_path)
    nodes.add()
    pool, history = _pool(tmp_path, ship_model=True)
    nodes.kill(_node(pool))
    _until(lambda: any("its node is gone" in line for line in said), pool, history)
    joined = nodes.add(hidden=[model])
    _until(lambda: _there(pool) == 2, pool, history)
    (shipped,) = (tmp_path / "nodes" / f"node-{joined}" / "cache" / "esplug" / "models").iterdir()
    assert (shipped / "config.json").read_text() == "{}"
    assert not any("no engine starts there" in line for line in said)
    pool.close()


def _model(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return model


def _end(nodes: Nodes, tmp_path: Path, patch: pytest.MonkeyPatch, said: list[str]) -> None:
    """A run that loses more nodes than it may ends."""
    patch.setattr("esplug.engines.liveness.START_TIMEOUT", 5.0)
    with pytest.raises(UserError, match=r"^--min-engines 3: the run has 2; choose fewer$"):
        _pool(tmp_path, min_engines=3)
    pool, history = _pool(tmp_path, min_engines=2, timeout=5.0)
    _iterate(pool, history)
    nodes.kill(2)
    with pytest.raises(RunError, match=r"^1 of at least 2 engines are left \(--min-engines\), .* for 5 s; resume"):
        _until(lambda: False, pool, history)
    pool.close()

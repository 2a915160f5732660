"""Lifecycle of engines on Ray: they are placed, their nodes are checked, and they are spawned and killed."""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from esplug.checkpoints.history import History
from esplug.engines import failures
from esplug.engines.actor import Engine
from esplug.engines.liveness import EngineSlot, LivenessMonitor
from esplug.engines.messages import EngineSettings
from esplug.engines.nodes import addresses, check_nodes, refuse_without_model
from esplug.engines.shipping import ship_model
from esplug.engines.vllm_options import memory_share
from esplug.errors import RunError
from esplug.planning.placement import Plan, cpu_kv_cache_bytes
from esplug.utils.console import say

_SOME = 0.0001  # of a resource that only chooses nodes; the least that Ray counts
_PLACING = 60.0  # seconds for Ray to find room for all engines


class ManagedEngines:
    """n engines, each in a slot. :mod:`.joining` puts a new engine into the slot of one that failed.

    Attributes:
        engine: class of the engines.
        restarts: number of engines replaced so far.
    """

    engine: type = Engine

    def __init__(
        self,
        plan: Plan,
        settings: EngineSettings,
        engine_bytes: int,
        kv_cache_most: int,
        folder: Path,
        *,
        timeout: float = 600.0,
        max_restarts: int = 10,
        ship_model: bool = False,
        min_engines: int = 1,
        resource: str | None = None,
    ) -> None:
        self.plan, self.restarts, self._ship_model, self._min_engines = plan, 0, ship_model, min_engines
        self._settings, self._engine_bytes, self._kv_cache_most = settings, engine_bytes, kv_cache_most
        self._folder, self._max_restarts, self._resource = folder, max_restarts, resource
        self._slots: list[EngineSlot] = []
        self._monitor = LivenessMonitor(self._slots, timeout)
        self._history = History(0)
        self._answered = False  # whether any engine has ever answered

    def _place(self) -> None:
        """Reserve resources for all engines and spawn their actors. Raises ``RunError`` if they are not free.

        Each engine has a placement group of its own: Ray places a group only if it can place all that is left of it, so
        a node that joins would have to have room for every engine that was lost.
        """
        from ray.util.placement_group import placement_group

        gpus, cores = self.plan.gpu_share, self.plan.cores_per_engine
        bundle = {"GPU": gpus, "CPU": 1} if gpus else {"CPU": cores}
        if self._resource:
            bundle |= {self._resource: _SOME}
        until = time.monotonic() + _PLACING
        for index in range(self.plan.n_engines):
            log = self._folder / "logs" / f"engine-{index}.log"
            self._slots.append(EngineSlot(index, log, placement=placement_group([bundle])))
        for slot in self._slots:
            if not slot.placement.wait(max(1.0, until - time.monotonic())):
                raise RunError(
                    f"Ray found no room for {self.plan.describe()} within {_PLACING:g} s; is another run using it?"
                )
            slot.node = self._room(slot) or ""
        self._check_nodes()
        known = addresses()
        for slot in self._slots:
            slot.address = known.get(slot.node, "")
            self._spawn(slot)
        self._share_machines()

    def _room(self, slot: EngineSlot) -> str | None:
        """Return Ray's id of the node that has room for a slot's engine, if one has."""
        from ray.util.placement_group import placement_group_table

        node: str | None = placement_group_table(slot.placement)["bundles_to_node_id"].get(0)
        return node

    def _check_nodes(self) -> None:
        """Check that the engines' nodes have what an engine needs, and ship the model to them if that is wanted.

        Raises:
            UserError: a node lacks something.
            RunError: a node does not answer.
        """
        model = Path(self._settings.model)
        lacking = check_nodes((slot.node for slot in self._slots), model)
        if not self._ship_model:
            refuse_without_model(lacking, model)
        elif lacking:
            self._settings = replace(self._settings, models=ship_model(model, lacking))

    def _spawn(self, slot: EngineSlot) -> None:
        """Start a new, idle actor in a slot."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus, cores = self.plan.gpu_share, self.plan.cores_per_engine
        place = PlacementGroupSchedulingStrategy(slot.placement, 0)
        actor = ray.remote(concurrency_groups={"pulse": 1})(self.engine)
        slot.actor = actor.options(num_gpus=gpus, num_cpus=1 if gpus else cores, scheduling_strategy=place).remote(
            str(slot.log.absolute())
        )
        slot.reset()

    def _share_machines(self) -> None:
        """Divide each machine's cores, and on CPUs its memory, among its engines, before any of them loads a model."""
        locations = [self._location(slot) for slot in self._slots]
        neighbours = Counter(node for node, _ in locations)
        placed = Counter[str]()
        for slot, (node, free) in zip(self._slots, locations, strict=True):
            slot.cores = placed[node], neighbours[node]
            placed[node] += 1
            if self._settings.device == "cpu":
                here, share = neighbours[node], memory_share(self._settings)
                slot.kv_cache = cpu_kv_cache_bytes(free, share, here, self._engine_bytes, self._kv_cache_most)

    def _location(self, slot: EngineSlot) -> tuple[str, int]:
        """Return an engine's node and that node's free memory in bytes."""
        import ray

        while True:
            try:
                location: tuple[str, int] = self._get(slot.actor.location.remote())
                return location
            except ray.exceptions.RayError as error:
                self._kill(slot, error)
                self._spawn(slot)

    def _start_engine(self, slot: EngineSlot) -> Any:
        """Have a slot's new actor load the model and catch up. Returns a reference to its :class:`CaughtUp`."""
        most = self.plan.cores_per_engine if self._settings.device == "cpu" else None
        return slot.actor.start.remote(self._settings, slot.cores, most, slot.kv_cache, self._history.catch_up())

    def _kill(self, slot: EngineSlot, error: Exception) -> None:
        """Kill a slot's actor, if it still lives, to replace it.

        Raises:
            RunError: --max-restarts engines have been replaced already.
            UserError: the engine raised it, so a new one would, too.
        """
        import ray

        if failures.is_users(error):
            raise failures.run_error(slot, error) from error
        if self.restarts >= self._max_restarts:
            more = f", and {self.restarts} were replaced already (--max-restarts)"
            raise failures.run_error(slot, error, more) from error
        self.restarts += 1
        count = f"{self.restarts} of at most {self._max_restarts}"
        say(f"engine {slot.index} {failures.describe(slot, error)}; replacing it ({count})")
        with suppress(Exception):  # the actor may be dead already
            ray.kill(slot.actor)
        slot.ready, slot.gone = False, True

    def _get(self, ref: Any) -> Any:
        """Wait for a reference's value, while the monitor watches all engines."""
        import ray

        return ray.get(self._monitor.wait([ref]))

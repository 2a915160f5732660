"""Lifecycle of engines on Ray: they are placed, started, and replaced when they die or hang."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esplug.checkpoints.history import CaughtUp, History
from esplug.checkpoints.seed_log_records import movement
from esplug.engines import failures
from esplug.engines.actor import Engine
from esplug.engines.liveness import EngineSlot, LivenessMonitor
from esplug.engines.messages import EngineSettings
from esplug.engines.nodes import check_nodes, refuse_without_model
from esplug.engines.shipping import ship_model
from esplug.engines.vllm_options import memory_share
from esplug.errors import RunError
from esplug.planning.placement import Plan, cpu_kv_cache_bytes
from esplug.utils.console import say

#: Seconds between two looks at which nodes are there.
LOOK_FOR_NODES = 2.0
_PORT_IN_USE = "ddress already in use"  # another process took a port between vLLM's finding and binding it


@dataclass(frozen=True, slots=True)
class Start:
    """A replacement that starts or catches up.

    Attributes:
        steps: updates of the run that it will have made.
        caught_up: what it has said of its start; the result to come is then a checksum.
    """

    slot: EngineSlot
    steps: int
    caught_up: CaughtUp | None = None


class ManagedEngines:
    """n engines, each in a slot. :meth:`_replace` puts a new engine into the slot of one that failed.

    A new engine replays the run's updates, so that it has the weights of the others.

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
    ) -> None:
        self.plan, self.restarts, self._ship_model, self._min_engines = plan, 0, ship_model, min_engines
        self._settings, self._engine_bytes, self._kv_cache_most = settings, engine_bytes, kv_cache_most
        self._folder, self._max_restarts = folder, max_restarts
        self._slots: list[EngineSlot] = []
        self._monitor = LivenessMonitor(self._slots, timeout, self._absent)
        self._starting: dict[Any, Start] = {}  # replacements, by the reference to what they do
        self._placement: Any = None
        self._history = History(0)
        self._answered = False  # whether any engine has ever answered

    def _place(self) -> None:
        """Reserve resources for all engines and spawn their actors. Raises ``RunError`` if they are not free."""
        import ray
        from ray.util.placement_group import placement_group

        gpus, cores = self.plan.gpu_share, self.plan.cores_per_engine
        bundle = {"GPU": gpus, "CPU": 1} if gpus else {"CPU": cores}
        self._placement = placement_group([bundle] * self.plan.n_engines, strategy="PACK")
        try:
            ray.get(self._placement.ready(), timeout=60)
        except ray.exceptions.GetTimeoutError as error:
            raise RunError(
                f"Ray found no room for {self.plan.describe()} within 60 s; is another run using it?"
            ) from error
        for index in range(self.plan.n_engines):
            self._slots.append(EngineSlot(index, self._folder / "logs" / f"engine-{index}.log"))
        self._note_nodes()
        self._check_nodes()
        for slot in self._slots:
            self._spawn(slot)
        self._share_machines()

    def _note_nodes(self) -> None:
        """Note on which node each engine is."""
        from ray.util.placement_group import placement_group_table

        nodes = placement_group_table(self._placement)["bundles_to_node_id"]
        for slot in self._slots:
            slot.node = nodes.get(slot.index, "")

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
        place = PlacementGroupSchedulingStrategy(self._placement, slot.index)
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
                self._respawn(slot, error)

    def _start_engine(self, slot: EngineSlot) -> Any:
        """Have a slot's new actor load the model and catch up. Returns a reference to its :class:`CaughtUp`."""
        most = self.plan.cores_per_engine if self._settings.device == "cpu" else None
        return slot.actor.start.remote(self._settings, slot.cores, most, slot.kv_cache, self._history.catch_up())

    def _wait_for_first_start(self, slot: EngineSlot, ref: Any) -> CaughtUp:
        """Wait until an engine has started. Replaces it if it died, but not if it raised: the next would raise, too."""
        import ray

        try:
            caught_up: CaughtUp = self._get(ref)
        except ray.exceptions.RayError as error:
            if failures.raised(error) and _PORT_IN_USE not in str(error):
                raise failures.run_error(slot, error) from error
            if (replaced := self._replace_and_wait(slot, error)) is None:
                raise RunError(f"engine {slot.index}: its node is gone, and no other has room for it") from error
            return replaced
        slot.ready = True
        return caught_up

    def _replace(self, slot: EngineSlot, error: Exception) -> None:
        """Replace an engine that failed. The new one starts and catches up meanwhile; see :meth:`_welcome`."""
        self._respawn(slot, error)
        self._starting[self._start_engine(slot)] = Start(slot, len(self._history.steps))

    def _respawn(self, slot: EngineSlot, error: Exception) -> None:
        """Kill a slot's actor, if it still lives, and spawn a new one.

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
        self._spawn(slot)

    def _welcome(self, ref: Any) -> EngineSlot | None:
        """Take in an engine whose start is done. Returns its slot if it has the weights of the others.

        It first makes the updates that the others have made since its start began. It is replaced if it failed.
        """
        import ray

        start = self._starting.pop(ref)
        slot, steps = start.slot, self._history.steps
        try:
            found = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._replace(slot, error)
            return None
        caught_up = found if start.caught_up is None else replace(start.caught_up, checksum=found)
        made, last = 0, None
        for count in range(start.steps + 1, len(steps) + 1):
            seeds, coefficients = movement(steps[:count], self._history.run_seed)
            if seeds:
                made, last = made + 1, slot.actor.update.remote(seeds, coefficients)
        if last is not None:
            caught_up = replace(caught_up, replayed=caught_up.replayed + made)
            self._starting[last] = Start(slot, len(steps), caught_up)
            return None
        slot.caught_up = caught_up
        self._check_replacement(slot, caught_up)
        return slot

    def _replace_and_wait(self, slot: EngineSlot, error: Exception) -> CaughtUp | None:
        """Replace an engine and wait until the new one has caught up; not if no node has room for it."""
        self._replace(slot, error)
        while not slot.ready:
            self._wait_for_a_start([ref for ref, start in self._starting.items() if start.slot is slot])
            if not slot.ready and self._absent(slot):
                return None
        caught_up: CaughtUp = slot.caught_up
        return caught_up

    def _wait_for_a_start(self, refs: Sequence[Any]) -> None:
        """Wait until one of these starts is done, but no longer than it takes to see that a node is gone."""
        until = time.monotonic() + LOOK_FOR_NODES
        done = self._monitor.wait(list(refs), lambda: time.monotonic() >= until)
        if done is not None:
            self._welcome(done)

    def _wait_for_enough(self) -> None:
        """Wait until --min-engines are there.

        Raises:
            RunError: they are not for as long as an engine may take to start.
        """
        since = time.monotonic()
        while (there := sum(slot.ready for slot in self._slots)) < self._min_engines:
            if time.monotonic() - since > self._monitor.start_timeout:
                raise RunError(
                    f"{there} of at least {self._min_engines} engines are left (--min-engines), and no node has had "
                    f"room for another for {self._monitor.start_timeout:g} s; resume the run when there are more nodes"
                )
            self._wait_for_a_start(list(self._starting))
            if not all(self._absent(start.slot) for start in self._starting.values()):
                since = time.monotonic()  # one starts, which can take long

    def _absent(self, slot: EngineSlot) -> bool:
        """Whether no node has room for an engine: its node is gone, and no other has taken its place."""
        import ray

        self._note_nodes()
        absent = not any(node["Alive"] and node["NodeID"] == slot.node for node in ray.nodes())
        if absent and not slot.absent:
            left = sum(each.ready for each in self._slots)
            say(f"engine {slot.index}: its node is gone; going on with {left} until a node has room for another")
        slot.absent = absent
        return absent

    def _check_replacement(self, slot: EngineSlot, caught_up: CaughtUp) -> None:
        """Check that a new engine has the weights of the others. Raises ``RunError`` if its checksum differs."""
        slot.ready, slot.absent = True, False
        self._note_nodes()
        for folder, reason in caught_up.damaged:
            say(f"skipped a checkpoint: {folder}: {reason}")
        expected = self._history.checksum
        if expected is not None and caught_up.checksum != expected:
            raise RunError(
                f"engine {slot.index} was replaced, and {caught_up.replayed} updates of the seed log gave it weights "
                f"with checksum {caught_up.checksum:016x} instead of {expected:016x}; going on would give wrong results"
            )
        say(f"engine {slot.index} is there again, {caught_up.replayed} updates replayed")

    def _call(self, slots: Sequence[EngineSlot], method: str, *arguments: Any) -> list[Any]:
        """Call a method of several engines at once. An engine that fails is replaced and called again.

        Leaves out engines that are not there, and those for which no node has room once they have failed.

        Raises:
            OSError: ``save`` or ``save_here`` raised it.
            RunError: the method raised on an engine and on its replacement, or too many engines were replaced.
        """
        import ray

        def wait(slot: EngineSlot, ref: Any) -> tuple[Any, ...]:
            raised_before = False
            while True:
                try:
                    return (self._get(ref),)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None)
                    if method in ("save", "save_here") and isinstance(
                        cause, OSError
                    ):  # the disk failed, not the engine
                        raise cause from error
                    if raised_before and failures.raised(error):
                        raise failures.run_error(slot, error) from error
                    raised_before |= failures.raised(error)
                    if self._replace_and_wait(slot, error) is None:
                        return ()
                    ref = getattr(slot.actor, method).remote(*arguments)

        self._wait_for_enough()
        calls = [(slot, getattr(slot.actor, method).remote(*arguments)) for slot in slots if slot.ready]
        return [result for slot, ref in calls for result in wait(slot, ref)]

    def _get(self, ref: Any) -> Any:
        """Wait for a reference's value, while the monitor watches all engines."""
        import ray

        return ray.get(self._monitor.wait([ref]))

"""The pool of engines on Ray: placing them, handing out work, keeping their weights equal, replacing the dead."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from esplug.checkpoints.history import CaughtUp, History
from esplug.engines.actor import Engine, memory_share
from esplug.engines.liveness import EngineSlot, LivenessMonitor
from esplug.engines.messages import EngineSettings, Generation, Sampling, Weights
from esplug.engines.scheduler import Piece, WorkScheduler
from esplug.errors import RunError, UserError
from esplug.planning.placement import Plan, cpu_kv_cache_bytes
from esplug.utils.console import get_console
from esplug.utils.json_files import write_json

Key = TypeVar("Key")

_PORT_TAKEN = "ddress already in use"  # by another process, between being found free and being taken


@dataclass(frozen=True, slots=True)
class Job(Generic[Key]):
    """Prompts to answer with each of some weights, in one batch; with more than one, these are members of low rank.

    Attributes:
        keys: one for each of the weights, which tell the caller whose answers they are.
        weights: on one engine, at once.
        prompts: token ids of B prompts.
        seeds: of each prompt's sampling; below 2**63.
        mini_batch_size: prompts that an engine answers at a time; engines may share a job by such mini-batches.
    """

    keys: Sequence[Key]
    weights: Sequence[Weights]
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    sampling: Sampling
    mini_batch_size: int


class EnginePool:
    """n engines with equal weights. Work goes to whichever engine is free; nobody waits for the slowest.

    An engine that dies, or makes no progress, is replaced: a new one takes its place, catches up with the
    others and does the work again, so that the result is the same.

    Args:
        plan: how many engines, on what.
        settings: equal for all engines.
        engine_bytes: memory of one engine on the CPU.
        kv_cache_most: bytes of a KV cache that are of use there.
        folder: the run's directory, which gets the engines' logs.
        timeout: seconds without progress after which an engine is replaced.
        max_restarts: engines to replace before giving up.

    Attributes:
        engine: class of the engines.
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
    ) -> None:
        self.plan = plan
        self.restarts = 0
        self._settings, self._engine_bytes, self._kv_cache_most = settings, engine_bytes, kv_cache_most
        self._folder, self._max_restarts = folder, max_restarts
        self._slots: list[EngineSlot] = []
        self._monitor = LivenessMonitor(self._slots, timeout)
        self._placement: Any = None
        self._history = History(0)

    def __len__(self) -> int:
        return self.plan.n_engines

    def start(self, history: History) -> CaughtUp:
        """Place and start all engines at once, and bring them to where ``history`` ends.

        The pool keeps ``history``, to which the caller appends, for engines that have to be replaced.

        Raises:
            RunError: an engine did not start; the message ends with its last log lines.
            UserError: an engine found the model wanting.
        """
        import ray
        from ray.util.placement_group import placement_group

        self._history = history
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
            self._slots.append(EngineSlot(index, None))
            self._spawn(self._slots[-1])
        self._share_machines()
        starting = [(slot, self._start(slot)) for slot in self._slots]
        caught_up = [self._started(slot, ref) for slot, ref in starting]
        self._agree([state.checksum for state in caught_up], "loading the model")
        return caught_up[0]

    def run(self, jobs: Iterable[Job[Key]]) -> Iterator[tuple[Key, Generation]]:
        """Answer jobs, each on the first engine that is free, and yield the keys and answers as they come.

        Raises:
            RunError: a job failed on two engines, or too many engines had to be replaced.
        """
        import ray

        schedule: WorkScheduler[Job[Key]] = WorkScheduler(jobs, _pieces)
        idle = deque(self._slots)
        running: dict[Any, tuple[EngineSlot, Piece[Job[Key]] | None]] = {}  # without a piece, an engine is starting
        answered: dict[Key, dict[int, list[Generation]]] = {}  # by a job's first key, and piece
        raised: set[tuple[Key, int]] = set()
        prompts = _Prompts()

        def hand_out() -> None:
            for _ in range(len(idle)):
                slot = idle.popleft()
                piece = schedule.take(slot.index)
                if piece is None:
                    idle.append(slot)
                    continue
                job, chosen = piece.job, _chosen(piece)
                ref = slot.actor.generate.remote(job.weights, prompts.ref(piece), job.seeds[chosen], job.sampling)
                running[ref] = (slot, piece)

        hand_out()
        while running:
            done = self._monitor.wait(list(running))
            slot, piece = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                if piece is not None:
                    name = (piece.job.keys[0], piece.number)
                    if _raised(error) and name in raised:
                        raise self._failure(slot, error) from error
                    raised |= {name} if _raised(error) else set()
                    schedule.requeue(slot.index, piece)
                running[self._replace(slot, error)] = (slot, None)
                hand_out()
                continue
            idle.append(slot)
            if piece is None:
                self._check_replacement(slot, result)
                hand_out()
                continue
            generations = [_on(slot.index, each) for each in result]
            work = generations[0].work
            schedule.done(sum(each.switch_seconds for each in work), sum(each.generate_seconds for each in work))
            hand_out()
            keys = piece.job.keys
            parts = answered.setdefault(keys[0], {})
            parts[piece.number] = generations
            if len(parts) == _pieces(piece.job):
                in_order = [part for _, part in sorted(answered.pop(keys[0]).items())]
                for i, key in enumerate(keys):
                    yield key, Generation.joined([part[i] for part in in_order])

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Move the weights of all engines alike. Returns their checksum.

        Raises:
            RunError: the engines' checksums differ, or too many engines had to be replaced.
        """
        return self._agree(self._call(self._slots, "update", seeds, coefficients), "the update")

    def save(self, folder: Path, *, exact: bool = False) -> None:
        """Let one engine write the weights to ``folder``, which must be visible to its machine.

        Args:
            folder: there already.
            exact: write the master weights as they are, rather than rounded to the checkpoint's types.

        Raises:
            OSError: they could not be written.
        """
        self._call(self._slots[:1], "save", str(folder.absolute()), exact)

    def close(self) -> None:
        """Stop all engines."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for slot in self._slots:
            with suppress(Exception):  # Ray may be gone; what went wrong before is what matters
                ray.kill(slot.actor)
        if self._placement is not None:
            with suppress(Exception):
                remove_placement_group(self._placement)
        self._slots.clear()
        self._placement = None

    # --- starting and replacing -------------------------------------------------------------------------

    def _spawn(self, slot: EngineSlot) -> None:
        """Put a new process in a slot; it does nothing yet."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        gpus, cores = self.plan.gpu_share, self.plan.cores_per_engine
        place = PlacementGroupSchedulingStrategy(self._placement, slot.index)
        actor = ray.remote(concurrency_groups={"pulse": 1})(self.engine)
        slot.actor = actor.options(num_gpus=gpus, num_cpus=1 if gpus else cores, scheduling_strategy=place).remote(
            str(self._log(slot).absolute())
        )
        slot.reset()

    def _share_machines(self) -> None:
        """Give each engine its share of its machine's cores and memory."""
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
        """Return an engine's machine and that machine's free memory; here an engine has not yet begun to load."""
        import ray

        while True:
            try:
                location: tuple[str, int] = self._get(slot.actor.location.remote())
            except ray.exceptions.RayError as error:
                self._respawn(slot, error)
            else:
                return location

    def _start(self, slot: EngineSlot) -> Any:
        most = self.plan.cores_per_engine if self._settings.device == "cpu" else None
        return slot.actor.start.remote(self._settings, slot.cores, most, slot.kv_cache, self._history.catch_up())

    def _started(self, slot: EngineSlot, ref: Any) -> CaughtUp:
        """Wait for a first start. One that raises would do so again; one that died may have better luck."""
        import ray

        try:
            caught_up: CaughtUp = self._get(ref)
        except ray.exceptions.RayError as error:
            if _raised(error) and _PORT_TAKEN not in str(error):
                raise self._failure(slot, error) from error
            return self._replace_and_wait(slot, error)
        slot.ready = True
        return caught_up

    def _replace(self, slot: EngineSlot, error: Exception) -> Any:
        """Start a new engine in the slot of one that failed. Returns what to wait for.

        Raises:
            RunError: too many were replaced already.
        """
        self._respawn(slot, error)
        return self._start(slot)

    def _respawn(self, slot: EngineSlot, error: Exception) -> None:
        """Put a new process in the slot of an engine that failed.

        Raises:
            RunError: too many were replaced already.
        """
        import ray

        if self.restarts >= self._max_restarts:
            failure = self._failure(slot, error, f", and {self.restarts} were replaced already (--max-restarts)")
            raise failure from error
        self.restarts += 1
        get_console().print(
            f"engine {slot.index} {self._what_happened(slot, error)}; replacing it "
            f"({self.restarts} of at most {self._max_restarts})",
            markup=False,
            soft_wrap=True,
        )
        with suppress(Exception):  # it may have raised rather than died, or hang
            ray.kill(slot.actor)
        self._spawn(slot)

    def _replace_and_wait(self, slot: EngineSlot, error: Exception) -> CaughtUp:
        """Replace an engine and wait until the new one has caught up."""
        import ray

        while True:
            starting = self._replace(slot, error)
            try:
                caught_up: CaughtUp = self._get(starting)
            except ray.exceptions.RayError as again:
                error = again
            else:
                self._check_replacement(slot, caught_up)
                return caught_up

    def _check_replacement(self, slot: EngineSlot, caught_up: CaughtUp) -> None:
        """See that a replacement has the weights of the others."""
        slot.ready = True
        for folder, reason in caught_up.damaged:
            get_console().print(f"passed over a checkpoint: {folder}: {reason}", markup=False, soft_wrap=True)
        expected = self._history.checksum
        if expected is not None and caught_up.checksum != expected:
            raise RunError(
                f"engine {slot.index} was replaced, and {caught_up.replayed} updates of the seed log gave it weights "
                f"with checksum {caught_up.checksum:016x} instead of {expected:016x}; going on would give wrong results"
            )
        get_console().print(
            f"engine {slot.index} is there again, {caught_up.replayed} updates replayed", markup=False, soft_wrap=True
        )

    # --- asking and waiting -----------------------------------------------------------------------------

    def _call(self, slots: Sequence[EngineSlot], method: str, *arguments: Any) -> list[Any]:
        """Call a method of several engines at once; one that fails is replaced and asked again, once if it raised."""
        import ray

        def ask(slot: EngineSlot) -> Any:
            return getattr(slot.actor, method).remote(*arguments)

        def answer(slot: EngineSlot, ref: Any) -> Any:
            raised = False
            while True:
                try:
                    return self._get(ref)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None)
                    if method == "save" and isinstance(cause, OSError):  # of the disk, not of the engine
                        raise cause from error
                    if raised and _raised(error):
                        raise self._failure(slot, error) from error
                    raised |= _raised(error)
                    self._replace_and_wait(slot, error)
                    ref = ask(slot)

        asked = [(slot, ask(slot)) for slot in slots]
        return [answer(slot, ref) for slot, ref in asked]

    def _get(self, ref: Any) -> Any:
        import ray

        return ray.get(self._monitor.wait([ref]))

    # --- what went wrong --------------------------------------------------------------------------------

    def _agree(self, checksums: list[int], when: str) -> int:
        """Insist that all engines have the same weights, and leave evidence where they do not."""
        if len(set(checksums)) != 1:
            each = ", ".join(f"engine {i}: {value:016x}" for i, value in enumerate(checksums))
            iteration, path = len(self._history.steps), self._folder / "checksum-mismatch.json"
            with suppress(Exception):  # evidence must not hide what it is about
                write_json(path, {"iteration": iteration, "after": when, "engines": self._evidence()}, indent=2)
            raise RunError(
                f"the engines' weights differ after {when} of iteration {iteration} ({each}); going on would give "
                f"wrong results. {path} says which tensors differ"
            )
        return checksums[0]

    def _evidence(self) -> dict[str, Any]:
        """Return each engine's place and the checksums of those tensors in which engines differ."""
        tensors = self._call(self._slots, "tensor_checksums")
        differing = [name for name in tensors[0] if len({each[name] for each in tensors}) > 1]
        return {
            str(slot.index): {"log": str(self._log(slot)), "tensors": {name: f"{own[name]:016x}" for name in differing}}
            for slot, own in zip(self._slots, tensors, strict=True)
        }

    def _failure(self, slot: EngineSlot, error: Exception, more: str = "") -> Exception:
        """Make the error that ends the run."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            return cause
        return RunError(f"engine {slot.index} {self._what_happened(slot, error)}{more}{self._log_tail(slot)}")

    def _what_happened(self, slot: EngineSlot, error: Exception) -> str:
        import ray

        if slot.silent_for:
            return f"made no progress for {slot.silent_for:g} s (--engine-timeout)"
        if _raised(error):
            cause = getattr(error, "cause", None) or error
            lines = [line for line in str(cause).splitlines() if line.strip()]
            return f"failed ({type(cause).__name__}: {lines[-1].strip() if lines else 'no message'})"
        return "ran out of memory and was killed" if isinstance(error, ray.exceptions.OutOfMemoryError) else "died"

    def _log(self, slot: EngineSlot) -> Path:
        return self._folder / "logs" / f"engine-{slot.index}.log"

    def _log_tail(self, slot: EngineSlot, lines: int = 15) -> str:
        path = self._log(slot)
        try:
            tail = path.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            return ""
        return f"\nlast lines of {path}:\n" + "\n".join(f"  {line}" for line in tail)


class _Prompts:
    """Puts prompts where engines can read them: a mini-batch travels once, not once a member."""

    def __init__(self) -> None:
        self._last: Any = None
        self._refs: dict[int, Any] = {}

    def ref(self, piece: Piece[Job[Any]]) -> Any:
        """Return a reference to a piece's prompts."""
        import ray

        if piece.job.prompts is not self._last:
            self._last, self._refs = piece.job.prompts, {}
        if piece.number not in self._refs:
            self._refs[piece.number] = ray.put(piece.job.prompts[_chosen(piece)])
        return self._refs[piece.number]


def _on(engine: int, generation: Generation) -> Generation:
    """Note which engine has answered."""
    return replace(generation, work=tuple(replace(each, engine=engine) for each in generation.work))


def _pieces(job: Job[Any]) -> int:
    """Return the number of a job's mini-batches."""
    return max(1, math.ceil(len(job.prompts) / job.mini_batch_size))


def _chosen(piece: Piece[Job[Any]]) -> slice:
    size = piece.job.mini_batch_size
    return slice(piece.number * size, (piece.number + 1) * size)


def _raised(error: Exception) -> bool:
    """Whether the engine raised an exception, rather than died."""
    import ray

    return isinstance(error, ray.exceptions.RayTaskError)

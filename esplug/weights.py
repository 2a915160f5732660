"""Master weights: the checkpoint's tensors, from which every member's weights are written.

Perturbing always writes new tensors from the master, which only :meth:`MasterWeights.update` changes, so
there is no drift and nothing to restore.

The kernels are imported inside functions: they need numba, which must not be imported before vLLM's CPU
engine has started.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from esplug.errors import UserError
from esplug.history import CatchUp, CaughtUp
from esplug.noise import tensor_key
from esplug.seed_log import movement
from esplug.shards import plan_shards, read_tensors, write_index, write_tensors

if TYPE_CHECKING:
    from esplug.kernels.cpu import Array

_JOB_ELEMENTS = 2**20  # about a millisecond of work: many times what handing it to a thread costs
_LOOKAHEAD_BYTES = 256 * 2**20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Elements ``start .. stop`` of a tensor."""

    name: str
    start: int
    stop: int


_Job: TypeAlias = list[_Stretch]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which of a checkpoint's tensors are written end to end as one, and in what pieces; see ``MasterWeights.fused``.

    Attributes:
        groups: the tensors of each, in the order in which they are written.
        shapes: of what is written.
    """

    groups: dict[str, tuple[str, ...]]
    shapes: dict[str, tuple[int, ...]]
    _places: dict[str, tuple[str, int]]  # in which of them a tensor is, and from which element
    _jobs: list[_Job]
    _last_job: dict[str, int]  # after which one of them is complete


class MasterWeights:
    """Master weights in checkpoint tensor space, on the CPU.

    Only floating-point tensors are perturbed, updated and counted in the checksum; others pass through.
    Do not call :meth:`update` while a :meth:`perturbed` iterator is still in use.

    Args:
        tensors: checkpoint names and tensors, which are copied.
        master_dtype: what the master is kept in: float32, or each tensor's own type (half the memory).
        threads: how many threads compute.
        cores: CPU cores these threads may run on, where the system has such a setting. They would otherwise
            inherit the caller's, which vLLM pins to a single core.
        beat: called whenever a piece of work is done, from any thread.

    Raises:
        UserError: a tensor's floating-point type is none of float32, bfloat16 and float16.
        ValueError: ``threads`` is not positive, or a name comes twice.
    """

    def __init__(
        self,
        tensors: Iterable[tuple[str, torch.Tensor]],
        master_dtype: Literal["float32", "model"] = "float32",
        *,
        threads: int = 1,
        cores: Sequence[int] | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        from esplug.kernels import cpu

        self._master_dtype, self._beat = master_dtype, beat
        self._pool = ThreadPoolExecutor(threads, "esplug-noise", _pin, (cores,))
        self._tensors: dict[str, torch.Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for name, tensor in tensors:
            if name in self._tensors:
                raise ValueError(f"tensor {name} comes twice")
            if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
                raise UserError(
                    f"tensor {name} has type {_short(tensor.dtype)}, which cannot be perturbed; "
                    "convert the model to bfloat16, float16 or float32"
                )
            kept = torch.float32 if tensor.is_floating_point() and master_dtype == "float32" else tensor.dtype
            self._dtypes[name] = tensor.dtype
            self._tensors[name] = torch.empty(tensor.shape, dtype=kept, device="cpu").copy_(tensor.detach())
            beat()
        self._flat: dict[str, Array] = {
            name: cpu.flat(tensor) for name, tensor in self._tensors.items() if tensor.is_floating_point()
        }
        self._layout = self.fused({name: (name,) for name in self._flat})

    @classmethod
    def load(
        cls,
        folder: Path,
        master_dtype: Literal["float32", "model"] = "float32",
        *,
        threads: int = 1,
        cores: Sequence[int] | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> "MasterWeights":
        """Read the safetensors of a Hugging Face model folder, sharded or not. Arguments as for the class.

        Where there is an index file, it alone says which file holds which tensor.

        Raises:
            UserError: there are no safetensors, one is missing or damaged, a tensor is in two files without an
                index to choose, or its type cannot be perturbed.
        """
        return cls(read_tensors(folder), master_dtype, threads=threads, cores=cores, beat=beat)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the master tensor itself, not a copy, in its checkpoint shape."""
        return self._tensors[name]

    @property
    def names(self) -> list[str]:
        """Checkpoint names, in the order of :meth:`perturbed`."""
        return list(self._tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint shape of each tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Type of each tensor in the checkpoint, which for a float32 master is not the master's."""
        return dict(self._dtypes)

    @property
    def nbytes(self) -> int:
        """Bytes of memory the master takes."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def fused(self, groups: Mapping[str, Sequence[str]]) -> Layout:
        """Plan to write tensors end to end along their first dimension, as many as each group of ``groups`` names.

        Raises:
            KeyError: there is no such floating-point tensor.
            ValueError: a group's tensors do not fit together.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        places: dict[str, tuple[str, int]] = {}
        for group, names in groups.items():
            parts = [self._tensors[name].shape for name in names]
            if len({part[1:] for part in parts}) != 1 or (len(parts) > 1 and not all(parts)):
                raise ValueError(f"{group}: the shapes of {', '.join(names)} do not fit together")
            size = 0
            for name in names:
                places[name] = group, size
                size += self._flat[name].size
            rows = (sum(part[0] for part in parts),) if parts[0] else ()
            shapes[group] = (*rows, *parts[0][1:])
        jobs = _plan({name: self._flat[name].size for name in places})
        last = {places[stretch.name][0]: number for number, job in enumerate(jobs) for stretch in job}
        return Layout({group: tuple(names) for group, names in groups.items()}, shapes, places, jobs, last)

    def perturbed(
        self, member_seed: int | None, scale: float, dtype: torch.dtype | None = None, layout: Layout | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over a member's weights, ``round(master + scale * eps(member_seed))``, as (name, tensor).

        Every tensor is a new one, which the consumer may keep. While it takes one, the next are being computed,
        at most 256 MB of them and one tensor more.

        Args:
            member_seed: whose noise to add, or None for the master itself, rounded.
            scale: ``sign * sigma``, rounded to float32. Zero gives the master itself.
            dtype: type of the floating-point tensors, or None for the checkpoint's own.
            layout: from :meth:`fused`: give only what is in it, in its order. Nothing is computed then while the
                consumer has a tensor, since it is expected to want the same cores for it.

        Raises:
            ValueError: the seed does not fit in 64 bits, ``scale`` is not finite in float32, or ``dtype`` is
                none of float32, bfloat16 and float16.
        """
        from esplug.kernels import cpu

        if dtype not in (None, *_FLOATS):
            raise ValueError(f"weights cannot be written in {dtype}; choose float32, bfloat16 or float16")
        (rounded,) = _float32s("scale", [scale])
        if member_seed is None or rounded == 0:
            return self._stream(dtype, layout, lambda _, source, target: cpu.convert(source, target))
        keys = {name: tensor_key(member_seed, name) for name in self._flat}

        def add_noise(stretch: _Stretch, source: "Array", target: "Array") -> None:
            cpu.perturb(source, target, stretch.start, keys[stretch.name], rounded)

        return self._stream(dtype, layout, add_noise)

    def update(self, seeds: Sequence[int], coefficients: Sequence[float]) -> None:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master, accumulated in the order given.

        Args:
            seeds: member seeds.
            coefficients: one per seed, rounded to float32.

        Raises:
            ValueError: the lengths differ, a seed does not fit in 64 bits, or a coefficient is not finite in
                float32. Nothing has changed then.
        """
        from esplug.kernels import cpu

        if len(seeds) != len(coefficients):
            raise ValueError(f"{len(seeds)} seeds but {len(coefficients)} coefficients")
        factors = _float32s("coefficient", coefficients)
        keys = {name: [tensor_key(seed, name) for seed in seeds] for name in self._flat}

        def accumulate(stretch: _Stretch) -> None:
            cpu.update(self._slice(stretch), stretch.start, keys[stretch.name], factors)

        if factors:
            self._for_all(accumulate)

    def checksum(self) -> int:
        """Return the 64-bit checksum of the master, defined at :func:`esplug.kernels.cpu.checksum`."""
        return sum(self.tensor_checksums().values()) % 2**64

    def tensor_checksums(self) -> dict[str, int]:
        """Return the 64-bit checksum of each floating-point tensor; modulo 2**64 their sum is the master's."""
        from esplug.kernels import cpu

        def checked(stretch: _Stretch) -> tuple[str, int]:
            return stretch.name, cpu.checksum(self._slice(stretch), stretch.start, stretch.name)

        sums = dict.fromkeys(self._flat, 0)
        for name, value in self._for_all(checked):
            sums[name] = (sums[name] + value) % 2**64
        return sums

    def undefined(self) -> list[str]:
        """Name the tensors that hold NaN or infinity."""
        # Not in the pool: every thread that computes with torch gets OpenMP threads of its own, and once a process has
        # more of them than cores, a team sleeps between operations instead of spinning: vLLM took 1.4 times as long.
        found = []
        for name in self._flat:
            self._beat()
            tensor = self._tensors[name]
            # NaN and infinity spread, and a sum takes no memory; one that overflows proves nothing.
            if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
                found.append(name)
        return found

    def catch_up(self, base: Path, catch_up: CatchUp) -> CaughtUp:
        """Bring the base model's weights, just loaded from ``base``, to where a run is.

        Starts from the first saved weights whose checksum is right, else from the base, and makes the updates that
        came after.
        """
        checksum, undefined = self.checksum(), tuple(self.undefined())
        state, first, damaged = checksum, 0, []
        for saved in catch_up.saved:
            try:
                self._copy_from(Path(saved.folder))
                state = self.checksum()
                if state == saved.checksum:
                    first = saved.iteration
                    break
                reason = f"its weights have checksum {state:016x} instead of {saved.checksum:016x}"
            except UserError as error:
                reason = str(error)
            damaged.append((saved.folder, reason))
        if damaged and not first:
            self._copy_from(base)
            state = checksum
        replayed = 0
        for done in range(first + 1, len(catch_up.steps) + 1):
            seeds, coefficients = movement(catch_up.steps[:done], catch_up.run_seed)
            self.update(seeds, coefficients)
            replayed += bool(seeds)
        if replayed:
            state = self.checksum()
        return CaughtUp(checksum, state, replayed, tuple(damaged), undefined)

    def _copy_from(self, folder: Path) -> None:
        """Overwrite the master with the tensors of a model folder.

        Raises:
            UserError: it is damaged, or a tensor is missing, unknown, or of another shape.
        """
        missing = set(self._flat)  # the others never change
        for name, tensor in read_tensors(folder):
            if name not in self._tensors or tensor.shape != self._tensors[name].shape:
                raise UserError(f"{folder}: tensor {name} is not one of this model's")
            if name in missing:
                self._beat()
                self._tensors[name].copy_(tensor)
                missing.remove(name)
        if missing:
            raise UserError(f"{folder}: tensor {min(missing)} is missing")

    def save(self, folder: Path, dtype: torch.dtype | None = None, *, exact: bool = False) -> None:
        """Write the master as safetensors that transformers and vLLM read, in shards of at most about 2 GB.

        Takes one shard's size of memory besides.

        Args:
            folder: made if need be.
            dtype: type of the floating-point tensors, or None for the checkpoint's own.
            exact: write them as they are instead, so that nothing is lost.

        Raises:
            OSError: they could not be written.
            UserError: the folder holds safetensors already, which would mix with these.
            ValueError: ``dtype`` is none of float32, bfloat16 and float16.
        """
        if any(folder.glob("*.safetensors*")):
            raise UserError(f"{folder}: there are *.safetensors here already; choose an empty folder")
        if exact:
            dtype = torch.float32 if self._master_dtype == "float32" else None
        stream = self.perturbed(None, 0.0, dtype)
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {
            name: tensor.numel() * self._written_as(name, dtype).itemsize for name, tensor in self._tensors.items()
        }
        shards = plan_shards(sizes)
        for file, names in shards.items():
            write_tensors(folder / file, {name: next(stream)[1] for name in names})
        write_index(folder, shards, sizes)

    def _written_as(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        return dtype if dtype is not None and name in self._flat else self._dtypes[name]

    def _slice(self, stretch: _Stretch) -> "Array":
        elements: Array = self._flat[stretch.name][stretch.start : stretch.stop]
        return elements

    def _for_all(self, work: Callable[[_Stretch], Result]) -> list[Result]:
        """Do ``work`` on every stretch of the master, in the pool."""

        def do(job: _Job) -> list[Result]:
            self._beat()
            return [work(stretch) for stretch in job]

        done = self._pool.map(do, self._layout._jobs)
        return [result for results in done for result in results]

    def _stream(
        self,
        dtype: torch.dtype | None,
        layout: Layout | None,
        write: Callable[[_Stretch, "Array", "Array"], None],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor once the pool has written it; ``write`` gets a stretch, its master and its target."""
        from esplug.kernels import cpu

        plan = layout or self._layout
        targets: dict[str, torch.Tensor] = {}
        running: deque[Future[None]] = deque()
        ahead = submitted = finished = 0

        def start(group: str) -> "Array":
            nonlocal ahead
            if group not in targets:
                written_as = self._written_as(plan.groups[group][0], dtype)
                targets[group] = torch.empty(plan.shapes[group], dtype=written_as, device="cpu")
                ahead += targets[group].nbytes
            return cpu.flat(targets[group])

        def place(stretch: _Stretch) -> tuple[_Stretch, "Array"]:
            group, offset = plan._places[stretch.name]
            return stretch, start(group)[offset + stretch.start : offset + stretch.stop]

        def run(job: list[tuple[_Stretch, "Array"]]) -> None:
            self._beat()
            for part, target in job:
                write(part, self._slice(part), target)

        try:
            for group in layout.groups if layout else self._tensors:
                if group not in plan.groups:
                    yield group, self._tensors[group].clone()
                    continue
                last = plan._last_job.get(group, -1)  # an empty tensor is in no job
                more = layout is None or submitted <= last
                while submitted < len(plan._jobs) and (submitted <= last or (more and ahead < _LOOKAHEAD_BYTES)):
                    job = [place(stretch) for stretch in plan._jobs[submitted]]
                    running.append(self._pool.submit(run, job))
                    submitted += 1
                due = last if layout is None else submitted - 1
                while finished <= due:
                    running.popleft().result()
                    finished += 1
                start(group)
                ahead -= targets[group].nbytes
                yield group, targets.pop(group)
        finally:
            for future in running:
                future.cancel()
            wait(running)


def _plan(sizes: Mapping[str, int]) -> list[_Job]:
    """Cut tensors, laid end to end, into jobs of equal size: several small tensors or a part of a large one."""
    jobs: list[_Job] = []
    room = 0
    for name, size in sizes.items():
        start = 0
        while start < size:
            if room == 0:
                jobs.append([])
                room = _JOB_ELEMENTS
            stop = min(size, start + room)
            jobs[-1].append(_Stretch(name, start, stop))
            room -= stop - start
            start = stop
    return jobs


def _float32s(what: str, values: Sequence[float]) -> list[float]:
    """Round to float32 values, refusing those that are not finite then."""
    with np.errstate(over="ignore"):
        rounded = np.array(values, dtype=np.float64).astype(np.float32).tolist()
    for value, result in zip(values, rounded, strict=True):
        if not math.isfinite(result):
            raise ValueError(f"{what} {value} is not finite in float32")
    return list(rounded)


def _pin(cores: Sequence[int] | None) -> None:
    """Let this thread run on ``cores``, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""Master weights: the checkpoint's tensors, from which every member's weights are written.

Perturbing always writes new tensors from the master, which only :meth:`MasterWeights.update` changes, so
there is no drift and nothing to restore.

The kernels are imported inside functions: they need numba, which must not be imported before vLLM's CPU
engine has started.
"""

import logging
import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.checkpoints.safetensors_shards import plan_shards, read_tensors, write_index, write_tensors
from esplug.checkpoints.seed_log_records import movement
from esplug.errors import UserError
from esplug.noise.full_rank import tensor_key, tensor_keys
from esplug.noise.low_rank import factor_keys, is_perturbed
from esplug.weights.partition import Job, Kept, Layout, Stretch, TensorBlock, plan
from esplug.weights.rank_group import RankGroup

if TYPE_CHECKING:
    from esplug.noise.kernels.cpu import Array

    # A tensor's name, a piece of its master, the flat index of the piece's first element, and where it is written.
    _Writing: TypeAlias = tuple[str, Array, int, Array]

#: Elements in a job: on a CPU about a millisecond of work, many times what handing it to a thread costs; on a GPU, what
#: is worth starting a kernel.
_JOB_ELEMENTS = {"cpu": 2**20, "cuda": 2**28, "host": 2**26}
_LOOKAHEAD_BYTES = 256 * 2**20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Result = TypeVar("Result")


class MasterWeights:
    """Master weights in checkpoint tensor space.

    Only floating-point tensors are perturbed, updated and counted in the checksum; others pass through. Of tensors that
    other processes share, a process may keep a block; checksums and files are those of the whole model all the same.
    Do not call :meth:`update` while a :meth:`perturbed` iterator is still in use.

    Args:
        tensors: checkpoint names and tensors, which are copied.
        master_dtype: what the master is kept in: float32, or each tensor's own type (half the memory).
        threads: how many threads compute.
        cores: CPU cores these threads may run on, where the system has such a setting. They would otherwise
            inherit the caller's, which vLLM pins to a single core.
        beat: called whenever a piece of work is done, from any thread.
        blocks: what to keep of the tensors that it names; of the others, all.
        device: where they are kept and computed with: the CPU or a GPU, with the same numbers.
        in_host: keep them in the host's memory, page-locked, though a GPU computes with them.
        ranks: the processes that keep the other blocks, and call :meth:`checksum`, :meth:`tensor_checksums`,
            :meth:`undefined`, :meth:`catch_up` and :meth:`save` together with this one.
        low_rank: of the noise that :meth:`update` adds; ``None`` where it has full rank.

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
        blocks: Mapping[str, TensorBlock] | None = None,
        device: str | torch.device = "cpu",
        in_host: bool = False,
        ranks: RankGroup | None = None,
        low_rank: int | None = None,
    ) -> None:
        self._master_dtype, self._beat, self._ranks = master_dtype, beat, ranks or RankGroup()
        self._low_rank = low_rank
        self._device, self._in_host = torch.device(device), in_host
        self._kernels = kernels_for(self._device, in_host=in_host)
        self._job_elements = _JOB_ELEMENTS["host" if in_host else self._device.type]
        # A GPU's kernels are only started here: by the caller, so that they go in the order of its own.
        on_cpu = self._device.type == "cpu"
        self._pool = ThreadPoolExecutor(threads, "esplug-noise", _pin, (cores,)) if on_cpu else _Caller()
        self._tensors: dict[str, torch.Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._blocks: dict[str, TensorBlock] = {}
        self._kept: dict[str, Kept] = {}
        for name, tensor in tensors:
            if name in self._tensors:
                raise ValueError(f"tensor {name} comes twice")
            if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
                raise UserError(
                    f"tensor {name} has type {_short(tensor.dtype)}, which cannot be perturbed; "
                    "convert the model to bfloat16, float16 or float32"
                )
            kept = torch.float32 if tensor.is_floating_point() and master_dtype == "float32" else tensor.dtype
            shape = tuple(tensor.shape)
            block = (blocks or {}).get(name) or TensorBlock.whole(shape, counted=self._ranks.rank == 0)
            self._dtypes[name], self._shapes[name], self._blocks[name] = tensor.dtype, shape, block
            self._tensors[name] = self._place(block.of(shape), kept).copy_(self._cut(name, tensor))
            if tensor.is_floating_point():
                elements = self._kernels.flat(self._tensors[name])
                matrix = elements.reshape(1 if block.end_to_end(shape) else block.of(shape)[0], -1)
                self._kept[name] = Kept(matrix, block.first(shape), math.prod(shape[1:]))
            beat()
        self._layout = self.fused({name: (name,) for name in self._kept})

    @classmethod
    def load(
        cls,
        folder: Path,
        master_dtype: Literal["float32", "model"] = "float32",
        *,
        threads: int = 1,
        cores: Sequence[int] | None = None,
        beat: Callable[[], None] = lambda: None,
        blocks: Mapping[str, TensorBlock] | None = None,
        device: str | torch.device = "cpu",
        in_host: bool = False,
        ranks: RankGroup | None = None,
        low_rank: int | None = None,
    ) -> "MasterWeights":
        """Read the safetensors of a Hugging Face model folder, sharded or not. Arguments as for the class.

        Where there is an index file, it alone says which file holds which tensor.

        Raises:
            UserError: there are no safetensors, one is missing or damaged, a tensor is in two files without an
                index to choose, or its type cannot be perturbed.
        """
        tensors = read_tensors(folder)
        where: dict[str, Any] = {"blocks": blocks, "device": device, "in_host": in_host, "ranks": ranks}
        return cls(tensors, master_dtype, threads=threads, cores=cores, beat=beat, low_rank=low_rank, **where)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the master tensor itself, not a copy, in its checkpoint shape, or its block."""
        return self._tensors[name]

    @property
    def low_rank(self) -> int | None:
        """Rank of the noise that :meth:`update` adds; ``None`` where it is full."""
        return self._low_rank

    @property
    def device(self) -> torch.device:
        """What computes with the master, and where members' weights are written."""
        return self._device

    @property
    def names(self) -> list[str]:
        """Checkpoint names, in the order of :meth:`perturbed`."""
        return list(self._tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Checkpoint shape of each tensor."""
        return dict(self._shapes)

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
                if name in places:
                    raise ValueError(f"{group}: {name} is in another group already")
                places[name] = group, size
                size += math.prod(self._kept[name].matrix.shape)
            rows = (sum(part[0] for part in parts),) if parts[0] else ()
            shapes[group] = (*rows, *parts[0][1:])
        jobs = plan({name: self._kept[name].units for name in places}, self._job_elements)
        last = {places[stretch.name][0]: number for number, job in enumerate(jobs) for stretch in job}
        return Layout({group: tuple(names) for group, names in groups.items()}, shapes, places, jobs, last)

    def perturbed(
        self,
        member_seed: int | None,
        scale: float,
        dtype: torch.dtype | None = None,
        layout: Layout | None = None,
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over a member's weights, ``round(master + scale * eps(member_seed))``, as (name, tensor).

        Every tensor is a new one, which the consumer may keep. While it takes one, the next are being computed,
        at most 256 MB of them and one tensor more, or on a GPU 2**28 weights.

        Args:
            member_seed: whose noise to add, or None for the master itself, rounded.
            scale: ``sign * sigma``, rounded to float32. Zero gives the master itself.
            dtype: type of the floating-point tensors, or None for the checkpoint's own.
            layout: from :meth:`fused`: give only what is in it, in its order. Nothing is computed then while the
                consumer has a tensor, since it is expected to want the same cores for it.
            into: contiguous tensors of that type, on the same device, to be overwritten instead of making new ones.

        Raises:
            ValueError: the seed does not fit in 64 bits, ``scale`` is not finite in float32, or ``dtype`` is
                none of float32, bfloat16 and float16.
        """
        if dtype not in (None, *_FLOATS):
            raise ValueError(f"weights cannot be written in {dtype}; choose float32, bfloat16 or float16")
        (rounded,) = _float32s("scale", [scale])
        if member_seed is None or rounded == 0:
            return self._stream(dtype, layout, into or {}, lambda work: self._kernels.convert_all(_ends(work)))
        keys = {name: tensor_key(member_seed, name) for name in self._kept}

        def add_noise(work: "list[_Writing]") -> None:
            pieces = [(source, out, first, keys[name], self._kept[name].pitch) for name, source, first, out in work]
            self._kernels.perturb_all(pieces, rounded)

        return self._stream(dtype, layout, into or {}, add_noise)

    def update(self, seeds: Sequence[int], coefficients: Sequence[float]) -> None:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master, accumulated in the order given.

        Where noise has low rank, that of :mod:`esplug.noise.low_rank` is added, to the weights of linear layers alone.

        Args:
            seeds: member seeds.
            coefficients: one per seed, rounded to float32.

        Raises:
            ValueError: the lengths differ, a seed does not fit in 64 bits, or a coefficient is not finite in
                float32. Nothing has changed then.
        """
        if len(seeds) != len(coefficients):
            raise ValueError(f"{len(seeds)} seeds but {len(coefficients)} coefficients")
        factors = _float32s("coefficient", coefficients)
        if self._low_rank:
            self._update_low_rank(seeds, factors, self._low_rank)
            return
        keys = {name: tensor_keys(seeds, name) for name in self._kept}

        def accumulate(job: Job) -> list[None]:
            pieces = []
            for stretch in job:
                kept = self._kept[stretch.name]
                pieces.append((*kept.piece(stretch), keys[stretch.name], kept.pitch))
            self._kernels.update_all(pieces, factors)
            return []

        if factors:
            self._for_all(self._layout.jobs, accumulate)

    def _update_low_rank(self, seeds: Sequence[int], factors: list[float], rank: int) -> None:
        matrices = {name: self._tensors[name] for name in self._kept if is_perturbed(name, self._shapes[name])}
        keys = {name: factor_keys(seeds, name) for name in matrices}

        def accumulate(job: Job) -> list[None]:
            pieces = []
            for stretch in job:
                name, block = stretch.name, self._blocks[stretch.name]
                part = self._kernels.array(matrices[name][stretch.start : stretch.stop])
                row, column = block.rows[0] + stretch.start, block.columns[0]
                pieces.append((part, row, column, self._shapes[name][1], keys[name]))
            self._kernels.update_low_rank_all(pieces, factors, rank)
            return []

        if factors:
            units = {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in matrices.items()}
            self._for_all(plan(units, self._job_elements), accumulate)

    def checksum(self) -> int:
        """Return the 64-bit checksum of the master, defined at :func:`esplug.noise.kernels.cpu.checksum`."""
        return sum(self.tensor_checksums().values()) % 2**64

    def tensor_checksums(self) -> dict[str, int]:
        """Return the 64-bit checksum of each floating-point tensor; modulo 2**64 their sum is the master's."""

        def checked(job: Job) -> list[tuple[str, int]]:
            counted = [stretch for stretch in job if self._blocks[stretch.name].counted]
            pieces = []
            for stretch in counted:
                kept = self._kept[stretch.name]
                pieces.append((*kept.piece(stretch), stretch.name, kept.pitch))
            values = self._kernels.checksum_all(pieces)
            return [(stretch.name, value) for stretch, value in zip(counted, values, strict=True)]

        sums = dict.fromkeys(self._kept, 0)
        for name, value in self._for_all(self._layout.jobs, checked):
            sums[name] += value
        return dict(zip(sums, self._ranks.sums(list(sums.values())), strict=True))

    def undefined(self) -> list[str]:
        """Name the tensors that hold NaN or infinity."""
        # Not in the pool: every thread that computes with torch gets OpenMP threads of its own, and once a process has
        # more of them than cores, a team sleeps between operations instead of spinning: vLLM took 1.4 times as long.
        found = []
        for name in self._kept:
            self._beat()
            tensor = self._tensors[name]
            # NaN and infinity spread, and a sum takes no memory; one that overflows proves nothing.
            found.append(not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all())
        return [name for name, anywhere in zip(self._kept, self._ranks.sums(found), strict=True) if anywhere]

    def catch_up(self, base: Path, catch_up: CatchUp) -> CaughtUp:
        """Bring the base model's weights, just loaded from ``base``, to where a run is.

        Starts from the first saved weights whose checksum is right, else from the base, and makes the updates that
        came after.
        """
        checksum, undefined = self.checksum(), tuple(self.undefined())
        state, first, damaged = checksum, 0, []
        for saved in catch_up.saved:
            reason = ""
            try:
                self._copy_from(Path(saved.folder))
            except UserError as error:
                reason = str(error)
            if self._ranks.sums([bool(reason)]) == [0]:
                state = self.checksum()
                if state == saved.checksum:
                    first = saved.iteration
                    break
                reason = f"its weights have checksum {state:016x} instead of {saved.checksum:016x}"
            damaged.append((saved.folder, reason or "another process could not read it"))
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
        missing = set(self._kept)  # the others never change
        for name, tensor in read_tensors(folder):
            if name not in self._tensors or tuple(tensor.shape) != self._shapes[name]:
                raise UserError(f"{folder}: tensor {name} is not one of this model's")
            if name in missing:
                self._beat()
                self._tensors[name].copy_(self._cut(name, tensor))
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
        sizes = {name: math.prod(self._shapes[name]) * self._written_as(name, dtype).itemsize for name in self._tensors}
        shards = plan_shards(sizes)
        failed: Exception | None = None
        for file, names in shards.items():
            tensors: dict[str, torch.Tensor] = {}
            for name in names:
                tensor = self._joined(*next(stream))
                if self._ranks.rank == 0:
                    tensors[name] = tensor
            if self._ranks.rank == 0 and failed is None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    write_tensors(folder / file, tensors)
                except Exception as error:  # the others would wait for ever
                    failed = error
        if failed is not None:
            raise failed
        if self._ranks.rank == 0:
            write_index(folder, shards, sizes)

    def _joined(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Return the whole tensor of which this process and others have each a part."""
        block, shape = self._blocks[name], self._shapes[name]
        if block.of(shape) == shape:
            return part.cpu()
        whole = torch.zeros(shape, dtype=part.dtype)
        if block.counted:
            self._cut(name, whole).copy_(part)
        self._ranks.join(whole)
        return whole

    def _cut(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view of the block that is kept of a tensor, given whole."""
        block = self._blocks[name]
        shape = block.of(tensor.shape)
        if shape == tensor.shape:
            return tensor.detach()
        if block.end_to_end(tensor.shape):
            return tensor.detach()[slice(*block.rows)]
        return tensor.detach().flatten(1)[slice(*block.rows), slice(*block.columns)]

    def _place(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Make room for a tensor of the master."""
        if not self._in_host:
            return self._empty(shape, dtype)
        tensor = torch.empty(tuple(shape), dtype=dtype)
        if self._device.type == "cuda" and tensor.nbytes:
            _lock_pages(tensor)
        return tensor

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self._device)

    def _written_as(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        return dtype if dtype is not None and name in self._kept else self._dtypes[name]

    def _for_all(self, jobs: Iterable[Job], work: Callable[[Job], list[Result]]) -> list[Result]:
        """Do ``work`` on every job, in the pool."""

        def do(job: Job) -> list[Result]:
            self._beat()
            return work(job)

        done = self._pool.map(do, jobs)
        return [result for results in done for result in results]

    def _stream(
        self,
        dtype: torch.dtype | None,
        layout: Layout | None,
        into: Mapping[str, torch.Tensor],
        write: Callable[["list[_Writing]"], None],
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every tensor once the pool has written it; ``write`` gets pieces of a job."""
        planned = layout or self._layout
        targets: dict[str, torch.Tensor] = {}
        running: deque[Future[None]] = deque()
        ahead = submitted = finished = 0

        def start(group: str) -> "Array":
            nonlocal ahead
            if group not in targets:
                written_as = self._written_as(planned.groups[group][0], dtype)
                given = into.get(group)
                targets[group] = self._empty(planned.shapes[group], written_as) if given is None else given
                ahead += targets[group].nbytes
            elements: Array = self._kernels.flat(targets[group])
            return elements

        def place(stretch: Stretch) -> "_Writing":
            group, offset = planned.places[stretch.name]
            kept = self._kept[stretch.name]
            source, first = kept.piece(stretch)
            begin = offset + stretch.start * kept.units[1]
            size = math.prod(source.shape)
            return stretch.name, source, first, start(group)[begin : begin + size].reshape(source.shape)

        def run(job: "list[_Writing]") -> None:
            self._beat()
            write(job)

        try:
            for group in layout.groups if layout else self._tensors:
                if group not in planned.groups:
                    yield group, self._tensors[group].clone()
                    continue
                last = planned.last_job.get(group, -1)  # an empty tensor is in no job
                more = layout is None or submitted <= last
                while submitted < len(planned.jobs) and (submitted <= last or (more and ahead < _LOOKAHEAD_BYTES)):
                    job = [place(stretch) for stretch in planned.jobs[submitted]]
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


class _Caller(Executor):
    """Does at once, in the calling thread, what it is given."""

    def submit(self, work: Callable[..., Result], /, *arguments: Any, **named: Any) -> "Future[Result]":
        future: Future[Result] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def _ends(work: "list[_Writing]") -> "list[tuple[Array, Array]]":
    return [(source, out) for _, source, _, out in work]


def kernels_for(device: torch.device, *, in_host: bool = False) -> Any:
    """Return the kernels for a device: a module, or an object that has its functions."""
    if in_host:
        from esplug.noise.kernels.streamed import Streamed

        return Streamed(device)
    if device.type == "cpu":
        from esplug.noise.kernels import cpu

        return cpu
    from esplug.noise.kernels import cuda

    return cuda


def _lock_pages(tensor: torch.Tensor) -> None:
    """Lock a tensor's memory, for a GPU to copy from, until it is freed. torch itself takes up to twice as much."""
    cudart: Callable[[], Any] = torch.cuda.cudart
    runtime = cudart()
    if int(runtime.cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0:
        weakref.finalize(tensor.untyped_storage(), runtime.cudaHostUnregister, tensor.data_ptr())
        return
    logging.getLogger(__name__).warning("the system locks no more memory: weights will be streamed more slowly")
    with suppress(RuntimeError):  # which is the failure, once more, that would otherwise meet whoever comes next
        torch.zeros(1, device="cuda")


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

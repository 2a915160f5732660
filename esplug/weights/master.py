"""Master weights: the checkpoint's tensors, from which every member's weights are written.

Perturbing always writes new tensors from the master, and only :meth:`MasterWeights.update` changes it, so there is no
drift and nothing to restore.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from esplug.checkpoints.history import CatchUp, CaughtUp, Saved
from esplug.checkpoints.safetensors_shards import read_tensors
from esplug.checkpoints.seed_log_records import movement
from esplug.errors import UserError
from esplug.noise.full_rank import tensor_key, tensor_keys
from esplug.noise.kernels import kernels_for
from esplug.noise.low_rank import factor_keys, is_perturbed
from esplug.weights.partition import Chunk, FusedLayout, Piece, TensorBlock, split_into_chunks
from esplug.weights.prepared import PreparedWrites
from esplug.weights.rank_group import RankGroup
from esplug.weights.stream import TensorStream
from esplug.weights.tensors import FLOATS, MasterDtype, MasterTensors
from esplug.weights.work_pool import WorkPool

if TYPE_CHECKING:
    from esplug.weights.stream import Write

#: Elements in a chunk. On a CPU this is about a millisecond of work, far more than handing it to a thread costs; on a
#: GPU it is worth starting a kernel for.
_CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**28, "host": 2**26}


class MasterWeights:
    """Master weights, under the names and in the shapes of the checkpoint.

    Only floating-point tensors are perturbed, updated and counted in the checksum; others pass through. A process may
    keep just a block of a tensor that it shares with other processes. Checksums and saved files still cover the whole
    model. Do not call :meth:`update` while a :meth:`perturbed` iterator is in use.

    Args:
        tensors: checkpoint names and tensors, which are copied.
        master_dtype: type of the master: float32, or each tensor's own type (half the memory).
        threads: number of threads that compute.
        cores: CPU cores to pin these threads to, rather than to the caller's, which may be a single one in vLLM.
        beat: called with every piece of work, from any thread.
        blocks: the part to keep of some tensors; the others are kept whole.
        device: keeps the weights and computes with them: the CPU or a GPU, with the same results.
        in_host: keep the weights in page-locked host memory, although a GPU computes with them.
        ranks: the processes that keep the other blocks. They call :meth:`checksum`, :meth:`tensor_checksums`,
            :meth:`undefined`, :meth:`catch_up` and :meth:`save` together with this one.
        low_rank: rank of the noise that :meth:`update` adds; ``None`` for full rank.

    Attributes:
        names: checkpoint names, in the order of :meth:`perturbed`.
        shapes, dtypes: of the tensors in the checkpoint; a float32 master may have other types.
        nbytes: size of the master in bytes.

    Raises:
        UserError: a tensor's floating-point type is not float32, bfloat16 or float16.
        ValueError: ``threads`` is not positive, or a name comes twice.
    """

    def __init__(
        self,
        tensors: Iterable[tuple[str, torch.Tensor]],
        master_dtype: MasterDtype = "float32",
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
        self.device, self.ranks, self.low_rank = torch.device(device), ranks or RankGroup(), low_rank
        self._master_dtype, self._beat = master_dtype, beat
        self._kernels = kernels_for(self.device, in_host=in_host)
        self._pool = WorkPool(self.device, threads, cores, beat)
        self._tensors = MasterTensors(
            tensors, master_dtype, blocks or {}, self.device, in_host, self.ranks, self._kernels, beat
        )
        self.names, self.shapes, self.dtypes = list(self._tensors.kept), self._tensors.shapes, self._tensors.dtypes
        self.nbytes = sum(tensor.nbytes for tensor in self._tensors.kept.values())
        self._can_prepare = hasattr(self._kernels, "prepared")
        self._prepared: PreparedWrites | None = None
        self._chunk_elements = _CHUNK_ELEMENTS["host" if in_host else self.device.type]
        self._unfused = self.fused({name: (name,) for name in self._tensors.views})

    @classmethod
    def load(cls, folder: Path, master_dtype: MasterDtype = "float32", **options: Any) -> "MasterWeights":
        """Read the safetensors of a Hugging Face model folder, sharded or not. ``options`` are those of the class.

        Raises:
            UserError: there are no safetensors, one is damaged, or a tensor's type cannot be perturbed.
        """
        return cls(read_tensors(folder), master_dtype, **options)

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the master tensor itself, or its block, not a copy."""
        return self._tensors.kept[name]

    def fused(self, groups: Mapping[str, Sequence[str]]) -> FusedLayout:
        """Lay out each group's tensors end to end along their first dimension, for :meth:`perturbed`.

        Raises:
            KeyError: there is no such floating-point tensor.
            ValueError: a group's tensors do not fit together.
        """
        return FusedLayout.of(groups, self._tensors.views, self._chunk_elements)

    def perturbed(
        self,
        member_seed: int | None,
        scale: float,
        dtype: torch.dtype | None = None,
        layout: FusedLayout | None = None,
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Iterate over a member's weights, ``round(master + scale * eps(member_seed))``, as (name, tensor).

        The consumer may keep the tensors. While it uses one, the next are being computed: at most 256 MB and one tensor
        more, or 2**28 weights on a GPU.

        Args:
            member_seed: gives the noise, or None for the master itself, rounded.
            scale: ``sign * sigma``, rounded to float32. Zero gives the master itself.
            dtype: float32, bfloat16 or float16 for the floating-point tensors, or None for the checkpoint's own types.
            layout: from :meth:`fused`: yield only its groups, in its order, and compute nothing while the consumer
                has a tensor, since it is expected to need the same cores.
            into: contiguous tensors of that type, on the same device, to overwrite instead of allocating new ones. With
                one for every group, a GPU writes all of them before this returns.

        Raises:
            ValueError: ``dtype`` is another, the seed exceeds 64 bits, or ``scale`` is not finite in float32.
        """
        if dtype not in (None, *FLOATS):
            raise ValueError(f"weights cannot be written in {dtype}; choose float32, bfloat16 or float16")
        (rounded,) = _float32s("scale", [scale])
        if layout is not None and into is not None and into.keys() == layout.groups.keys() and self._can_prepare:
            self._beat()
            if self._prepared is None or not self._prepared.is_for(layout, into):
                self._prepared = PreparedWrites(self._tensors, layout, into, self._kernels)
            self._prepared.write(member_seed if rounded else None, rounded)
            return iter([(group, into[group]) for group in layout.groups])
        if member_seed is None or rounded == 0:

            def write(writes: "list[Write]") -> None:
                self._kernels.convert_all([(piece.elements, out) for piece, out in writes])
        else:
            keys = {name: tensor_key(member_seed, name) for name in self._tensors.views}

            def write(writes: "list[Write]") -> None:
                pieces = [(each.elements, out, each.first, keys[each.name], each.pitch) for each, out in writes]
                self._kernels.perturb_all(pieces, rounded)

        output = layout or self._unfused, dtype, into or {}, layout is not None
        return iter(TensorStream(self._tensors, *output, self._pool, self._kernels.flat, write))

    def update(self, seeds: Sequence[int], coefficients: Sequence[float]) -> None:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master, accumulated in the order given.

        Coefficients are rounded to float32. Noise of low rank changes only the weights of linear layers.

        Raises:
            ValueError: the lengths differ, a seed exceeds 64 bits, or a coefficient is not finite in float32. The
                master is unchanged then.
        """
        if len(seeds) != len(coefficients):
            raise ValueError(f"{len(seeds)} seeds but {len(coefficients)} coefficients")
        factors = _float32s("coefficient", coefficients)
        if self.low_rank:
            self._update_low_rank(seeds, factors, self.low_rank)
            return
        keys = {name: tensor_keys(seeds, name) for name in self._tensors.views}

        def accumulate(chunk: Chunk) -> None:
            pieces = [(each.elements, each.first, keys[each.name], each.pitch) for each in self._pieces(chunk)]
            self._kernels.update_all(pieces, factors)

        if factors:
            self._pool.map(accumulate, self._unfused.chunks)

    def _update_low_rank(self, seeds: Sequence[int], factors: list[float], rank: int) -> None:
        kept, shapes, blocks = self._tensors.kept, self._tensors.shapes, self._tensors.blocks
        matrices = {name: kept[name] for name in self._tensors.views if is_perturbed(name, shapes[name])}
        keys = {name: factor_keys(seeds, name) for name in matrices}

        def accumulate(chunk: Chunk) -> None:
            pieces = []
            for part in chunk:
                rows = self._kernels.array(matrices[part.name][part.start : part.stop])
                row, column = blocks[part.name].rows[0] + part.start, blocks[part.name].columns[0]
                pieces.append((rows, row, column, shapes[part.name][1], keys[part.name]))
            self._kernels.update_low_rank_all(pieces, factors, rank)

        if factors:
            units = {name: (matrix.shape[0], matrix.shape[1]) for name, matrix in matrices.items()}
            self._pool.map(accumulate, split_into_chunks(units, self._chunk_elements))

    def checksum(self) -> int:
        """Return the 64-bit checksum of the master, defined at :func:`esplug.noise.kernels.cpu.checksum`."""
        return sum(self.tensor_checksums().values()) % 2**64

    def tensor_checksums(self) -> dict[str, int]:
        """Return the 64-bit checksum of each floating-point tensor. Their sum modulo 2**64 is the master's."""

        def checked(chunk: Chunk) -> list[tuple[str, int]]:
            counted = [each for each in self._pieces(chunk) if self._tensors.blocks[each.name].counted]
            values = self._kernels.checksum_all(
                [(each.elements, each.first, each.name, each.pitch) for each in counted]
            )
            return [(each.name, value) for each, value in zip(counted, values, strict=True)]

        sums = dict.fromkeys(self._tensors.views, 0)
        for values in self._pool.map(checked, self._unfused.chunks):
            for name, value in values:
                sums[name] += value
        return dict(zip(sums, self.ranks.sums(list(sums.values())), strict=True))

    def undefined(self) -> list[str]:
        """Return the names of tensors that hold NaN or infinity."""
        # Not in the pool: every thread that computes with torch gets OpenMP threads of its own, and once a process has
        # more of them than cores, a team sleeps between operations instead of spinning: vLLM took 1.4 times as long.
        found = []
        for name in self._tensors.views:
            self._beat()
            tensor = self._tensors.kept[name]
            # A sum spreads NaN and infinity and takes no memory. It may also overflow, so the elements decide.
            found.append(not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all())
        totals = self.ranks.sums(found)
        return [name for name, total in zip(self._tensors.views, totals, strict=True) if total]

    def overwrite(self, folder: Path) -> None:
        """Overwrite the master with the tensors of a model folder.

        Raises:
            UserError: the folder is damaged, or a tensor is missing, unknown, or of another shape.
        """
        self._tensors.overwrite(folder)

    def catch_up(self, base: Path, target: CatchUp) -> CaughtUp:
        """Bring the base model's weights, just loaded from ``base``, to the run's current ones.

        Starts from the first saved weights with the right checksum, or from the base model if there are none, and
        repeats the updates that came after.
        """
        base_checksum, undefined = self.checksum(), tuple(self.undefined())
        checksum, done, damaged = base_checksum, 0, []
        for saved in target.saved:
            if not Path(saved.folder).is_dir():  # this node does not share the run's directory
                continue
            reason = self._restore(saved)
            if not reason:
                checksum, done = saved.checksum, saved.iteration
                break
            damaged.append((saved.folder, reason))
        if damaged and not done:
            self.overwrite(base)
        replayed = 0
        for steps in range(done + 1, len(target.steps) + 1):
            seeds, coefficients = movement(target.steps[:steps], target.run_seed)
            self.update(seeds, coefficients)
            replayed += bool(seeds)
        if replayed:
            checksum = self.checksum()
        return CaughtUp(base_checksum, checksum, replayed, tuple(damaged), undefined)

    def _restore(self, saved: Saved) -> str:
        """Overwrite the master with saved weights. Return why that failed, on this rank or another, or nothing."""
        reason = ""
        try:
            self.overwrite(Path(saved.folder))
        except UserError as error:
            reason = str(error)
        if self.ranks.sums([bool(reason)]) != [0]:
            return reason or "another process could not read it"
        checksum = self.checksum()
        if checksum != saved.checksum:
            return f"its weights have checksum {checksum:016x} instead of {saved.checksum:016x}"
        return ""

    def save(self, folder: Path, dtype: torch.dtype | None = None, *, exact: bool = False) -> None:
        """Write the master as safetensors that transformers and vLLM read, in shards of at most about 2 GB.

        Takes additional memory of one shard's size. Creates ``folder``.

        Args:
            dtype: as in :meth:`perturbed`.
            exact: write the tensors in the master's own type instead, without rounding.

        Raises:
            OSError: the files could not be written.
            UserError: the folder holds safetensors already; readers would mix them with the new ones.
        """
        if any(folder.glob("*.safetensors*")):
            raise UserError(f"{folder}: there are *.safetensors here already; choose an empty folder")
        if exact:
            dtype = torch.float32 if self._master_dtype == "float32" else None
        self._tensors.save(folder, self.perturbed(None, 0.0, dtype), dtype)

    def _pieces(self, chunk: Chunk) -> list[Piece]:
        return [self._tensors.views[part.name].piece(part) for part in chunk]


def _float32s(what: str, values: Sequence[float]) -> list[float]:
    """Round to float32. Raises ``ValueError`` if a rounded value is not finite."""
    with np.errstate(over="ignore"):
        rounded = np.array(values, dtype=np.float64).astype(np.float32).tolist()
    for value, result in zip(values, rounded, strict=True):
        if not math.isfinite(result):
            raise ValueError(f"{what} {value} is not finite in float32")
    return list(rounded)

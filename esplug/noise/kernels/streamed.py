"""Streamed kernels: GPU kernels for master weights in host memory.

Each piece is copied to the GPU, and back if it changes. Pieces, or batches of them, alternate between two CUDA streams,
so that copies in both directions and kernels overlap.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch

from esplug.noise.kernels import cuda
from esplug.noise.kernels.program_table import PerturbPiece, Words, as_words

_BUFFER_BYTES = 2**26  # about a millisecond of a bus, far more than starting its copies takes
_ALIGNMENT = 256
_Copy: TypeAlias = tuple[torch.Tensor, torch.Tensor]  # place in the buffer, and the master


class Streamed:
    """The functions of :mod:`esplug.noise.kernels.cuda`, for masters in host memory and targets on ``device``."""

    array = staticmethod(cuda.array)
    flat = staticmethod(cuda.flat)

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Callable[..., Any] = torch.cuda.Stream
        self._streams = [stream(device), stream(device)] if device.type == "cuda" else []

    def convert_all(self, pieces: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """See :func:`esplug.noise.kernels.cuda.convert_all`."""
        self._for_each(pieces, lambda master, out: cuda.convert_all([(master, out)]))

    def perturb_all(self, pieces: Iterable[tuple[torch.Tensor, torch.Tensor, int, int, int]], scale: float) -> None:
        """See :func:`esplug.noise.kernels.cuda.perturb_all`."""
        self._for_each(pieces, lambda *piece: cuda.perturb_all([piece], scale))

    def prepared(self, pieces: Sequence[PerturbPiece]) -> cuda.Perturb:
        """See :func:`esplug.noise.kernels.cuda.prepared`. Each stream copies batches of pieces to its own buffer."""
        parts = [(number, part) for number, piece in enumerate(pieces) for part in _split(piece)]
        owners = np.array([number for number, _ in parts])
        batches = _batches([part for _, part in parts], self._device)

        def perturb(keys: Words, scale: float) -> None:
            words, first = as_words(keys[owners], self._device), 0
            self._wait()
            for number, (copies, batch) in enumerate(batches):
                with self._stream(number):
                    for copy, master in copies:
                        copy.copy_(master, non_blocking=True)
                    batch.start(words[first : first + len(copies)], scale)
                first += len(copies)
            self._synchronize()

        return perturb

    def update_all(self, pieces: Iterable[cuda.UpdatePiece], coefficients: Sequence[float]) -> None:
        """See :func:`esplug.noise.kernels.cuda.update_all`."""
        self._for_each(pieces, lambda *piece: cuda.update_all([piece], coefficients), back=True)

    def update_low_rank_all(self, pieces: Iterable[cuda.MatrixBlock], coefficients: Sequence[float], rank: int) -> None:
        """See :func:`esplug.noise.kernels.cuda.update_low_rank_all`."""
        self._for_each(pieces, lambda *piece: cuda.update_low_rank_all([piece], coefficients, rank), back=True)

    def checksum_all(self, pieces: Sequence[tuple[torch.Tensor, int, str, int]]) -> list[int]:
        """See :func:`esplug.noise.kernels.cuda.checksum_all`."""
        return self._for_each(pieces, cuda.checksum)

    def _for_each(self, pieces: Iterable[Any], work: Callable[..., Any], *, back: bool = False) -> list[Any]:
        """Call ``work`` with each piece, its master (the first element) copied to the GPU, and wait for the results."""
        results = []
        self._wait()
        for number, (master, *rest) in enumerate(pieces):
            with self._stream(number):
                copy = master.to(self._device, copy=True, non_blocking=True)
                results.append(work(copy, *rest))
                if back:
                    master.copy_(copy, non_blocking=True)
        self._synchronize()
        return results

    def _wait(self) -> None:
        """Let both streams start after the caller's earlier work."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(self._device))

    def _synchronize(self) -> None:
        for stream in self._streams:
            stream.synchronize()

    def _stream(self, number: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[number % 2]) if self._streams else nullcontext()


def _split(piece: PerturbPiece) -> Iterator[PerturbPiece]:
    """Split a piece until each part fits into a buffer."""
    master, out, start, pitch = piece
    rows, columns = master.shape
    if _padded(master) <= _BUFFER_BYTES:
        yield piece
    elif rows == 1:
        half = columns // 2
        yield from _split((master[:, :half], out[:, :half], start, pitch))
        yield from _split((master[:, half:], out[:, half:], start + half, pitch))
    else:
        half = rows // 2
        yield from _split((master[:half], out[:half], start, pitch))
        yield from _split((master[half:], out[half:], start + half * pitch, pitch))


def _batches(pieces: Sequence[PerturbPiece], device: torch.device) -> list[tuple[list[_Copy], cuda.Perturbation]]:
    """Divide pieces, in their order, into batches of one type that fit into a buffer.

    Returns each batch's copies, as (place in the buffer, master), and its perturbation. Even batches have one buffer,
    odd ones the other.
    """
    buffers = [torch.empty(_BUFFER_BYTES, dtype=torch.uint8, device=device) for _ in range(2)]
    groups: list[tuple[list[_Copy], list[PerturbPiece]]] = []
    types, begin = None, 0
    for master, out, first, pitch in pieces:
        if types != (master.dtype, out.dtype) or begin + _padded(master) > _BUFFER_BYTES:
            groups.append(([], []))
            types, begin = (master.dtype, out.dtype), 0
        buffer = buffers[(len(groups) - 1) % 2]
        place = buffer[begin : begin + master.nbytes].view(master.dtype).view(master.shape)
        groups[-1][0].append((place, master))
        groups[-1][1].append((place, out, first, pitch))
        begin += _padded(master)
    return [(copies, cuda.Perturbation.of(laid_out)) for copies, laid_out in groups]


def _padded(tensor: torch.Tensor) -> int:
    """Return a tensor's bytes in a buffer, with the padding that keeps the next one aligned."""
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT

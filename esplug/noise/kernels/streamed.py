"""Streamed kernels: GPU kernels for master weights in host memory.

Each piece is copied to the GPU, and back if it changes. Pieces alternate between two CUDA streams, so that copies in
both directions and kernels overlap.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from esplug.noise.kernels import cuda


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
        for stream in self._streams:  # start after the caller's earlier work
            stream.wait_stream(torch.cuda.current_stream(self._device))
        for number, (master, *rest) in enumerate(pieces):
            with self._stream(number):
                copy = master.to(self._device, copy=True, non_blocking=True)
                results.append(work(copy, *rest))
                if back:
                    master.copy_(copy, non_blocking=True)
        for stream in self._streams:
            stream.synchronize()
        return results

    def _stream(self, number: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[number % 2]) if self._streams else nullcontext()

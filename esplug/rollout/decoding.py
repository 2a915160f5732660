"""Decoding: one step advances all rows by a token. On a GPU, each size of batch is one CUDA graph."""

import torch

from esplug.rollout.model import Packed, PagedModel
from esplug.rollout.requests import GREEDY, Sampler
from esplug.rollout.rows import Rows

VLLM_INTERNALS = {"vllm.distributed.parallel_state": "graph_capture(device)"}

_SHORTEST = 512  # longest sequence for which graphs are captured at least, in tokens
_WARM_UPS = 2  # before a graph is captured, kernels are compiled and buffers allocated


class Decoder:
    """Steps of decoding.

    Args:
        graphs: whether to capture and replay CUDA graphs.
    """

    def __init__(self, model: PagedModel, rows: Rows, graphs: bool) -> None:
        self._model, self._rows, self._graphs = model, rows, graphs
        self._captured: dict[tuple[int, int, Sampler], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if graphs else None

    def steps(self, count: int, size: int, longest: int, sampler: Sampler) -> None:
        """Advance the first ``size`` rows, none of which gets ``longest`` tokens or more, by ``count`` tokens."""
        if not self._graphs:
            for _ in range(count):
                self._step(size, longest, sampler)
            return
        longest = max(_SHORTEST, 1 << (longest - 1).bit_length())
        graph = self._captured.get((size, longest, sampler))
        if graph is None:
            graph = self._captured[size, longest, sampler] = self._capture(size, longest, sampler)
        for _ in range(count):
            graph.replay()

    def prepare(self, size: int) -> None:
        """Capture the graph of the largest batch first, so that the others fit into its memory."""
        if self._graphs:
            self._rows.rearrange([], [], size)
            self.steps(0, size, _SHORTEST, GREEDY)

    def _step(self, size: int, longest: int, sampler: Sampler) -> None:
        rows = self._rows
        batch = Packed(
            rows.token[:size],
            rows.position[:size],
            rows.place[:size],
            starts=rows.starts[: size + 1],
            starts_on_host=rows.starts_on_host[: size + 1],
            lengths=rows.length[:size],
            table=rows.table[:size],
            most_new=1,
            longest=longest,
        )
        rows.advance(size, self._model.logits(self._model.hidden(batch)), sampler)

    def _capture(self, size: int, longest: int, sampler: Sampler) -> torch.cuda.CUDAGraph:
        from vllm.distributed.parallel_state import graph_capture

        active, graph = self._rows.active.clone(), torch.cuda.CUDAGraph()
        self._rows.active.zero_()  # so that these steps change nothing
        for _ in range(_WARM_UPS):
            self._step(size, longest, sampler)
        torch.cuda.synchronize()
        with graph_capture(self._rows.device) as vllm, torch.cuda.graph(graph, self._pool, vllm.stream):
            self._step(size, longest, sampler)
        self._rows.active.copy_(active)
        return graph


def batch_size(rows: int, most: int) -> int:
    """Return the size of batch with which to decode so many rows: there are few, because each is a graph of its own."""
    step = 1 if rows <= 2 else 4 if rows <= 16 else 8 if rows <= 256 else 32
    return min(most, -(-rows // step) * step)

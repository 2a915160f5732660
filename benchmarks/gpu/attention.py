"""Attention of one step of decoding: esplug's kernel next to vLLM's FlashAttention and the time to read its bytes."""

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.device import DEVICE, GPU, Row, seconds
from benchmarks.gpu.rollout import bandwidth
from benchmarks.shared import random_model
from esplug.rollout import attention_kernel

_PAGE = 16
_SHAPES = ((8, 512), (32, 256), (32, 1024), (200, 256), (200, 456), (256, 1024)) if GPU else ((2, 40),)
_LAYERS = 16 if GPU else 1  # each with a KV cache of its own, so that none stays in the GPU's own cache


def measure(name: str) -> Iterator[Row]:
    """Time attention for some numbers of rows and lengths, in CUDA graphs, and compare the results."""
    hidden, _, _, heads, key_heads, *_ = random_model.MODELS[name]
    size = hidden // heads
    for rows, length in _SHAPES:
        layers = [_Layer(rows, length, heads, key_heads, size) for _ in range(_LAYERS)]
        nbytes = 4 * rows * length * key_heads * size
        row: Row = {"model": name, "rows": rows, "length": length}
        row["bytes, us"] = 1e6 * nbytes / bandwidth() if GPU else 0.0
        row["esplug"] = _microseconds(lambda each: each.by_row(), layers)
        expected = layers[0].dense()
        row["error"] = float((layers[0].output - expected).norm() / expected.norm())
        if GPU:
            for splits in (1, 32):
                row[f"FlashAttention, {splits}"] = _microseconds(lambda each, n=splits: each.by_flash(n), layers)
            row["error, FlashAttention"] = float((layers[0].output - expected).norm() / expected.norm())
        yield row


class _Layer:
    def __init__(self, rows: int, length: int, heads: int, key_heads: int, size: int) -> None:
        dtype = torch.bfloat16 if GPU else torch.float16  # Triton's interpreter multiplies no bfloat16
        pages = -(-length // _PAGE)

        def some(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=DEVICE).to(dtype)

        self.query, self.key, self.value = (
            some(rows, heads, size),
            some(rows, key_heads, size),
            some(rows, key_heads, size),
        )
        self.cache = some(1 + rows * pages, _PAGE, key_heads, 2 * size).transpose(1, 2)  # as vLLM lays pages out
        order = torch.randperm(rows * pages, device=DEVICE)
        self.table = (1 + order).reshape(rows, pages).to(torch.int32)
        self.lengths = torch.full((rows,), length, dtype=torch.int32, device=DEVICE)
        last = length - 1
        self.places = self.table[:, last // _PAGE].long() * _PAGE + last % _PAGE
        self.starts = torch.arange(rows + 1, dtype=torch.int32, device=DEVICE)
        processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count if GPU else 1
        self.tiles = attention_kernel.tiles(rows * key_heads, processors, size)
        self.output, self.scale, self.longest = torch.empty_like(self.query), size**-0.5, length

    def by_row(self) -> None:
        attention_kernel.attend(
            *(self.query, self.key, self.value, self.cache, self.table, self.lengths, self.places, self.output),
            self.scale,
            self.tiles,
        )

    def by_flash(self, splits: int) -> None:
        from vllm import _custom_ops  # noqa: F401  - loads vLLM's kernels
        from vllm.vllm_flash_attn import flash_attn_varlen_func

        size = self.query.shape[-1]
        keys, values = self.cache.transpose(1, 2).split(size, dim=-1)
        one = torch.ones(1, device=DEVICE)
        torch.ops._C_cache_ops.reshape_and_cache_flash(
            self.key, self.value, keys, values, self.places, "auto", one, one
        )
        flash_attn_varlen_func(
            q=self.query,
            k=keys,
            v=values,
            out=self.output,
            cu_seqlens_q=self.starts,
            max_seqlen_q=1,
            seqused_k=self.lengths,
            max_seqlen_k=self.longest,
            softmax_scale=self.scale,
            causal=True,
            block_table=self.table,
            fa_version=3,
            num_splits=splits,
        )

    def dense(self) -> torch.Tensor:
        """Return the attention in float32. The new keys and values are already in the KV cache."""
        _, heads, size = self.query.shape
        kept = self.cache.transpose(1, 2)[self.table.long()].flatten(1, 2)[:, : self.longest].float()
        keys, values = (
            each.transpose(1, 2).repeat_interleave(heads // kept.shape[2], 1) for each in kept.split(size, dim=-1)
        )
        weights = torch.softmax(torch.einsum("rhd,rhpd->rhp", self.query.float(), keys) * self.scale, -1)
        return torch.einsum("rhp,rhpd->rhd", weights, values)


def _microseconds(work: Callable[[_Layer], None], layers: list[_Layer]) -> float:
    def every() -> None:
        for layer in layers:
            work(layer)

    every()
    if not GPU:
        return 1e6 * seconds(every, 1) / len(layers)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        every()
    return 1e6 * seconds(lambda: [graph.replay() for _ in range(10)], 5) / len(layers) / 10

"""Attention while decoding on a GPU, in place of vLLM's, and when to use it: each row has one new token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

VLLM_INTERNALS = {
    "vllm.v1.attention.backends.flash_attn:FlashAttentionImpl": "forward(layer, query, key, value, kv_cache, "
    "attn_metadata, output) scale head_size num_heads num_kv_heads alibi_slopes logits_soft_cap sinks kv_cache_dtype "
    "batch_invariant_enabled",
}

_SHORT = 1024  # longest sequences that vLLM need not divide among programs, in tokens


class RowAttention:
    """Stands in for the attention of a layer of vLLM while each row has one new token.

    Args:
        scale: of the scores.
        processors: of the GPU, for tiles that suit the number of rows.
    """

    def __init__(self, scale: float, processors: int) -> None:
        self._scale, self._processors = scale, processors

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        rows: Any,
        output: torch.Tensor,
        **_: Any,
    ) -> torch.Tensor:
        """Write the rows' attention to ``output``, and their new keys and values to the KV cache.

        Args:
            query: [rows, heads, size]; ``key`` and ``value`` have fewer heads.
            kv_cache: [pages, key heads, positions, 2 * size]: keys, then values.
            rows: an :class:`esplug.rollout.model.Packed` with one token a row.
        """
        from esplug.rollout.attention_kernel import attend, tiles

        by = tiles(len(rows.lengths) * key.shape[1], self._processors, key.shape[2])
        attend(query, key, value, kv_cache, rows.table, rows.lengths, rows.places, output, self._scale, by)
        return output


class RowAttentions:
    """The choice between :class:`RowAttention` and vLLM's attention, for all layers of a model.

    Args:
        group: of vLLM's attention layers.
        config: vLLM's.
        key_heads: of a layer.
        device: the GPU on which vLLM runs whole steps in CUDA graphs; ``None`` if it runs none.
    """

    def __init__(self, group: Any, config: Any, key_heads: int, device: torch.device | None) -> None:
        layers = [config.compilation_config.static_forward_context[name] for name in group.layer_names]
        by_row = device is not None and group.backend.get_name() == "FLASH_ATTN"
        dtype = config.model_config.dtype
        self._layers = layers if by_row and all(_fits(layer, dtype) for layer in layers) else []
        self._key_heads = key_heads
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count if self._layers else 0

    def suit(self, batch: Any) -> bool:
        """Return whether each row has one new token, and the rows or their shortness keep the GPU busy.

        Args:
            batch: an :class:`esplug.rollout.model.Packed`.
        """
        if not self._layers or batch.most_new != 1:
            return False
        return batch.longest <= _SHORT or len(batch.lengths) * self._key_heads >= self._processors

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the layers attend by :class:`RowAttention`."""
        before = [layer.impl for layer in self._layers]
        for layer in self._layers:
            layer.impl = RowAttention(layer.impl.scale, self._processors)
        try:
            yield
        finally:
            for layer, impl in zip(self._layers, before, strict=True):
                layer.impl = impl


def _fits(layer: Any, dtype: torch.dtype) -> bool:
    """Return whether :class:`RowAttention` computes what this attention layer of vLLM does."""
    impl = layer.impl
    return (
        dtype in (torch.bfloat16, torch.float16)
        and impl.kv_cache_dtype in ("auto", "bfloat16", "float16")
        and impl.head_size <= 256
        and impl.alibi_slopes is None
        and impl.sinks is None
        and not impl.batch_invariant_enabled  # whose answers are vLLM's own, token by token
        and not impl.logits_soft_cap
        and layer.kv_sharing_target_layer_name is None
    )

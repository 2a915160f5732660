"""Adapters on a CPU: the low-rank products of a batch in which each row has its own adapter.

A few plain matrix products replace vLLM's own code, which copies the adapter's factors for every row.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

VLLM_INTERNALS = {
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU": "__init__(max_num_batched_tokens, max_batches, device)",
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase": "token_lora_indices "
    "_update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size) "
    "update_metadata(mapping, lora_index_to_id, max_loras, vocab_size) "
    "add_lora_linear(y, x, lora_a_stacked, lora_b_stacked, scale, output_slices)",
    "vllm.lora.layers.utils:LoRAMapping": "index_mapping",
}


class MaskedAdapters(PunicaWrapperCPU):  # type: ignore[misc]
    """Multiplies all rows with all adapters, and masks the products with other rows' adapters.

    The factors are thin. For a batch of tens of members, this is faster than gathering each row's own factors.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device, *, lora_config: Any, **named: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **named)
        slots = lora_config.max_loras
        self._slots = torch.arange(slots, device=device)
        self._mask = torch.zeros(max_num_batched_tokens, slots, dtype=torch.bool, device=device)
        self._no_adapters = False

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_: Any
    ) -> None:
        """Store which rows of the next batch belong to which slot."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        slots = self.token_lora_indices
        self._mask[: len(slots)] = slots[:, None] == self._slots
        self._no_adapters = not any(mapping.index_mapping)

    def use_slots(self, slots: torch.Tensor) -> None:
        """Store each row's slot of the next batches, int64[rows]: from 0 on, or -1 for none."""
        self._mask[: len(slots)] = slots[:, None] == self._slots
        self._no_adapters = not bool((slots >= 0).any())

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """Add to each row of ``y`` its adapter's product with that row of ``x``, one slice of ``y`` at a time.

        Shapes are those of :func:`esplug.vllm_worker.adapter_kernel.add`; ``scale`` is always 1.
        """
        if self._no_adapters:
            return
        mask, first = self._mask[: x.shape[0], :, None], 0
        for a, b, outputs in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            slots, _one, rank, inputs = a.shape
            share = (x @ a.view(slots * rank, inputs).t()).view(-1, slots, rank)
            share = torch.where(mask, share, 0.0).flatten(1)  # multiplying by 0 would keep NaN
            factor = b.view(slots, outputs, rank).transpose(1, 2).reshape(slots * rank, outputs)
            y[:, first : first + outputs] += share @ factor
            first += outputs

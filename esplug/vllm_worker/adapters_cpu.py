"""What vLLM computes on a CPU for a batch in which every row has an adapter of its own: few plain matrix products.

vLLM itself copies its adapter's factors for every row.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU


class MaskedAdapters(PunicaWrapperCPU):  # type: ignore[misc]
    """Computes all adapters' shares of all rows, and drops those of other rows.

    Thin factors cost little, and for a batch of tens of members this is less than gathering what each row needs.
    """

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device, *, lora_config: Any, **named: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **named)
        slots = lora_config.max_loras
        self._numbers = torch.arange(slots, device=device)
        self._mask = torch.zeros(max_num_batched_tokens, slots, dtype=torch.bool, device=device)
        self._all_alone = False

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_: Any
    ) -> None:
        """Note which rows of the next batch belong to which slot."""
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        slots = self.token_lora_indices
        self._mask[: len(slots)] = slots[:, None] == self._numbers
        self._all_alone = not any(mapping.index_mapping)

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
        """Add to each row of ``y`` what its adapter makes of that row of ``x``; a slice at a time.

        Args:
            y: [rows, sum of output_slices].
            x: [rows, inputs].
            lora_a_stacked: of each slice [slots, 1, rank, inputs].
            lora_b_stacked: of each slice [slots, 1, outputs, rank].
            scale: 1.
            output_slices: outputs of each.
        """
        if self._all_alone:
            return
        mask, first = self._mask[: x.shape[0], :, None], 0
        for a, b, outputs in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
            slots, _one, rank, inputs = a.shape
            share = (x @ a.view(slots * rank, inputs).t()).view(-1, slots, rank)
            share = torch.where(mask, share, 0.0).flatten(1)  # rather than times 0, which leaves NaN what it is
            factor = b.view(slots, outputs, rank).transpose(1, 2).reshape(slots * rank, outputs)
            y[:, first : first + outputs] += share @ factor
            first += outputs

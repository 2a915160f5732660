"""Adapters on a GPU: the low-rank products of a batch in which each row has its own adapter, in one kernel a layer.

vLLM's own kernels add partial sums in no fixed order, so the same prompts could get other answers the next time. They
also do not support float32.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.utils.torch_utils import direct_register_custom_op

from esplug.vllm_worker import adapter_kernel

VLLM_INTERNALS = {
    "vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU": "__init__(max_num_batched_tokens, max_batches, device)",
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase": "_token_lora_indices _update_base_metadata "
    "update_metadata add_lora_linear(y, x, lora_a_stacked, lora_b_stacked)",
    "vllm.utils.torch_utils": "direct_register_custom_op(op_name, op_func, mutates_args, fake_impl)",
}


class RowAdapters(PunicaWrapperCPU):  # type: ignore[misc]
    """Adds each row's adapter output with :func:`.adapter_kernel.add`. For GPUs, despite its base class."""

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: torch.device, **named: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **named)
        self._token_lora_indices.fill_(-1)  # a CUDA graph pads a batch with more rows

    def update_metadata(self, *mapping: Any, **_: Any) -> None:
        """Store which rows of the next batch belong to which slot."""
        self._update_base_metadata(*mapping)

    def use_slots(self, slots: torch.Tensor) -> None:
        """Store each row's slot of the next batches, int64[rows] on the GPU: from 0 on, or -1 for none."""
        self._token_lora_indices[: len(slots)] = slots

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a: tuple[torch.Tensor, ...],
        b: tuple[torch.Tensor, ...],
        *_: Any,
        **_named: Any,
    ) -> None:
        """Add to each row of ``y`` its adapter's product with that row of ``x``; see :func:`.adapter_kernel.add`."""
        torch.ops.vllm.esplug_add_adapters(y, x, self._token_lora_indices, list(a), list(b))


direct_register_custom_op(
    "esplug_add_adapters",
    adapter_kernel.add,
    mutates_args=["y"],
    fake_impl=lambda *_, **__: None,  # used while vLLM compiles its model
)

"""What vLLM computes on a GPU for a batch in which every row has an adapter of its own: one kernel a layer.

vLLM's own kernels add parts of a sum in whatever order they come, so that the same prompts may be answered in another
way the next time, and they take no float32.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.utils.torch_utils import direct_register_custom_op

from esplug.vllm_worker import adapter_kernel


class RowAdapters(PunicaWrapperCPU):  # type: ignore[misc]
    """Adds each row's adapter output with :func:`.adapter_kernel.add`. For GPUs, despite its base class."""

    def __init__(self, max_num_batched_tokens: int, max_batches: int, device: torch.device, **named: Any) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **named)
        self._token_lora_indices.fill_(-1)  # a CUDA graph takes more rows than there are

    def update_metadata(self, *mapping: Any, **_: Any) -> None:
        """Note which rows of the next batch belong to which slot."""
        self._update_base_metadata(*mapping)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        a: tuple[torch.Tensor, ...],
        b: tuple[torch.Tensor, ...],
        *_: Any,
        **_named: Any,
    ) -> None:
        """Add to each row of ``y`` what its adapter makes of that row of ``x``; see the kernel."""
        torch.ops.vllm.esplug_add_adapters(y, x, self._token_lora_indices, list(a), list(b))


direct_register_custom_op(
    "esplug_add_adapters",
    adapter_kernel.add,
    mutates_args=["y"],
    fake_impl=lambda *_, **__: None,  # stands in for it while vLLM compiles its model
)

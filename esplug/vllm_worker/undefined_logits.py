"""Counter of undefined logits: tokens for which the model gave NaN or infinity, by adapter."""

from typing import Any

import torch

# compute_logits is a method of every model.
VLLM_INTERNALS = {
    "vllm.model_executor.models.llama:LlamaForCausalLM": "compute_logits()",
    "vllm.lora.model_manager:LoRAModelManager": "__init__.lora_manager punica_wrapper_mapping",
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase": "sampler_indices",
}


def watch_logits(model: torch.nn.Module, counts: torch.Tensor) -> None:
    """Have ``model`` count tokens with undefined logits in ``counts``, int64[1 + adapter slots].

    The first element counts tokens without an adapter.
    """
    compute: Any = model.compute_logits
    manager: Any = getattr(model, "lora_manager", None)
    adapters = None if manager is None else next(iter(manager.punica_wrapper_mapping.values()))
    count = count_undefined
    if counts.is_cuda:
        from esplug.vllm_worker.logits_kernel import count_undefined as count

    def compute_and_count(*arguments: Any, **named: Any) -> Any:
        logits = compute(*arguments, **named)
        if logits is not None:  # with tensor parallelism, some ranks get none
            slots = None
            if adapters is not None and len(adapters.sampler_indices) == len(logits):
                slots = adapters.sampler_indices
            count(logits, slots, counts)
        return logits

    vars(model)["compute_logits"] = compute_and_count


def count_undefined(logits: torch.Tensor, slots: torch.Tensor | None, counts: torch.Tensor) -> None:
    """Count on a CPU, as :func:`esplug.vllm_worker.logits_kernel.count_undefined` does on a GPU."""
    undefined = (~torch.isfinite(logits.amax(dim=-1))).to(counts.dtype)
    counts.index_add_(0, torch.zeros_like(undefined) if slots is None else slots + 1, undefined)

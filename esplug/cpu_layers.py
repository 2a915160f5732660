"""vLLM's own C kernels for norms and activations on a CPU, where it leaves both to torch unless it compiles the model.

Each then is a handful of small operations on a few rows, which cost a decoding step more than what they compute.
"""

from collections.abc import Callable
from typing import Any

import torch

_WIDTH = 64  # of a row, in which kernels that take so many numbers at once always find an end

Forward = Callable[..., Any]


def use_c_kernels(model: torch.nn.Module) -> None:
    """Have the RMS norms and SwiGLU activations of ``model`` compute with C kernels, where vLLM has them."""
    from vllm.model_executor.layers.activation import SiluAndMul
    from vllm.model_executor.layers.layernorm import RMSNorm

    kernels: Any = torch.ops._C
    for layer in model.modules():
        if type(layer) is RMSNorm and layer.has_weight and layer.variance_size_override is None:
            if hasattr(kernels, "rms_norm") and hasattr(kernels, "fused_add_rms_norm"):
                vars(layer)["forward"] = _norm(layer, layer.forward, kernels)
        elif type(layer) is SiluAndMul and hasattr(kernels, "silu_and_mul"):
            vars(layer)["forward"] = _silu_and_mul(layer.forward, kernels)


def _norm(layer: Any, native: Forward, kernels: Any) -> Forward:
    def forward(x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        weight = layer.weight
        if not _plain(x, weight.dtype) or not (residual is None or _plain(residual, weight.dtype)):
            return native(x, residual)
        if residual is None:
            out = torch.empty_like(x)
            kernels.rms_norm(out, x, weight, layer.variance_epsilon)
            return out
        kernels.fused_add_rms_norm(x, residual, weight, layer.variance_epsilon)  # in place, both
        return x, residual

    return forward


def _silu_and_mul(native: Forward, kernels: Any) -> Forward:
    def forward(x: torch.Tensor) -> Any:
        if not _plain(x, x.dtype):
            return native(x)
        out = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
        kernels.silu_and_mul(out, x)
        return out

    return forward


def _plain(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Say whether the kernels take ``x``: rows that lie one behind the other, of the weight's type."""
    return x.ndim == 2 and x.dtype == dtype and x.is_contiguous() and x.shape[1] % _WIDTH == 0


def use_masked_adapters(manager: Any) -> None:
    """Have the LoRA layers of vLLM's ``manager`` compute all adapters' shares of all rows, and drop the others'.

    vLLM's own way on a CPU copies its adapter's factors for every row; this is two small matrix products. Their
    tensors are moved to where one product takes all adapters, and hold zeros afterwards.
    """
    punica = next(iter(manager.punica_wrapper_mapping.values()))
    rows = _Rows(punica, manager.lora_slots)
    for layer in manager.modules.values():
        slots, _, rank, width = layer.lora_a_stacked[0].shape
        dtype, slices = layer.lora_a_stacked[0].dtype, len(layer.lora_a_stacked)
        a = torch.zeros(slices, slots, rank, width, dtype=dtype)
        b = [torch.zeros(slots, rank, stack.shape[2], dtype=dtype) for stack in layer.lora_b_stacked]
        layer.lora_a_stacked = tuple(each.unsqueeze(1) for each in a)
        layer.lora_b_stacked = tuple(each.transpose(1, 2).unsqueeze(1) for each in b)
        vars(layer)["apply"] = _masked(layer, rows, a.view(-1, width), [each.flatten(0, 1) for each in b])


class _Rows:
    """Which rows of a batch belong to which adapter, once for all layers."""

    def __init__(self, punica: Any, slots: int) -> None:
        self.any, self.mask = False, torch.empty(0)
        update, numbers = punica.update_metadata, torch.arange(slots)

        def updated(*arguments: Any, **named: Any) -> None:
            update(*arguments, **named)
            slot = punica.token_lora_indices
            self.mask = slot[:, None] == numbers
            self.any = bool(self.mask.any())

        punica.update_metadata = updated


def _masked(layer: Any, rows: _Rows, a: torch.Tensor, b: list[torch.Tensor]) -> Forward:
    """Make what a layer computes: its product, and what the adapters add. ``a`` is that of all slices."""

    def apply(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out: torch.Tensor = layer.base_layer.quant_method.apply(layer.base_layer, x, bias)
        if rows.any:
            mask = rows.mask.to(x.dtype)
            share = (x @ a.T).view(len(x), len(b), mask.shape[1], -1) * mask[:, None, :, None]
            first = 0
            for number, factor in enumerate(b):
                out[:, first : first + factor.shape[1]].addmm_(share[:, number].flatten(1), factor)
                first += factor.shape[1]
        return out

    return apply

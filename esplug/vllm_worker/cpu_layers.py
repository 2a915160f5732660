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

"""C kernels for norms and activations on a CPU. vLLM has them, but uses torch unless it compiles the model.

In torch, each layer is several small operations on a few rows, whose overhead dominates a decoding step.
"""

from collections.abc import Callable
from typing import Any

import torch

# The kernels of torch.ops._C are looked up when they are used.
VLLM_INTERNALS = {
    "vllm.model_executor.layers.activation:SiluAndMul": "forward_native(x)",
    "vllm.model_executor.layers.layernorm:RMSNorm": "forward_native(x, residual) has_weight "
    "variance_epsilon variance_size_override",
    "vllm._custom_ops": "rms_norm(out, input, weight, epsilon) fused_add_rms_norm(input, residual, weight, epsilon)",
}

_WIDTH = 64  # rows must be a multiple of this, as some kernels have no code for a remainder

Forward = Callable[..., Any]


def use_c_kernels(model: torch.nn.Module) -> None:
    """Replace the forward of RMS norms and SwiGLU activations in ``model`` by C kernels, if vLLM has them."""
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
        if not _supported(x, weight.dtype) or not (residual is None or _supported(residual, weight.dtype)):
            return native(x, residual)
        if residual is None:
            out = torch.empty_like(x)
            kernels.rms_norm(out, x, weight, layer.variance_epsilon)
            return out
        kernels.fused_add_rms_norm(x, residual, weight, layer.variance_epsilon)  # both in place
        return x, residual

    return forward


def _silu_and_mul(native: Forward, kernels: Any) -> Forward:
    def forward(x: torch.Tensor) -> Any:
        if not _supported(x, x.dtype):
            return native(x)
        out = torch.empty((*x.shape[:-1], x.shape[-1] // 2), dtype=x.dtype, device=x.device)
        kernels.silu_and_mul(out, x)
        return out

    return forward


def _supported(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether the kernels support ``x``: contiguous rows of the weight's type."""
    return x.ndim == 2 and x.dtype == dtype and x.is_contiguous() and x.shape[1] % _WIDTH == 0

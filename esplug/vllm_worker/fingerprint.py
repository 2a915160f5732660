"""Fingerprint of vLLM's model: checksums of its parameters, and of what layers compute whose weights are packed."""

from collections.abc import Sequence
from typing import Any

import torch

from esplug.noise.kernels import kernels_for
from esplug.weights.tensors import FLOATS

VLLM_INTERNALS = {
    "vllm.model_executor.layers.linear:LinearBase": "input_size",
    "vllm.model_executor.layers.linear:RowParallelLinear": "input_size_per_partition",
    "vllm.model_executor.layers.utils": "dispatch_cpu_unquantized_gemm.cpu_linear",
    "vllm.model_executor.layers.vocab_parallel_embedding": "ParallelLMHead VocabParallelEmbedding.embedding_dim",
}

_PROBES = 4  # inputs with which packed weights, which cannot be read back, are compared

Fingerprint = dict[str, tuple[object, ...]]


@torch.no_grad()
def fingerprint(model: torch.nn.Module, dtype: torch.dtype) -> Fingerprint:
    """Return checksums of a model's floating-point parameters, and of what packed layers make of fixed inputs.

    Args:
        model: vLLM's model.
        dtype: of the packed layers' inputs.
    """
    parameters = {name: each.data for name, each in model.named_parameters() if each.numel()}
    floats = {name: tensor for name, tensor in parameters.items() if tensor.is_floating_point()}
    seen: Fingerprint = {}
    for name, value in zip(floats, _checksums(list(floats.values())), strict=True):
        seen[name] = (floats[name].dtype, tuple(floats[name].shape), value)
    for name, layer in model.named_modules():
        if hasattr(layer, "cpu_linear") and _is_used(model, layer):
            generator = torch.Generator().manual_seed(0)
            inputs = torch.randn(_PROBES, _input_size(layer), generator=generator).to(dtype)
            outputs = layer.cpu_linear(inputs, layer.weight, getattr(layer, "bias", None))
            seen[f"{name} (packed)"] = tuple(_checksums([outputs]))
    return seen


def output_embeddings(model: torch.nn.Module, parameter: torch.nn.Parameter) -> list[Any]:
    """Return the layers that compute with a packed copy of these embeddings, tied or not."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    embeddings = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    layers = [each for each in embeddings if each.weight is parameter and hasattr(each, "cpu_linear")]
    return [layer for layer in layers if isinstance(layer, ParallelLMHead)] or layers


def _checksums(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Return the checksums of tensors on one device."""
    if not tensors:
        return []
    values: list[int] = kernels_for(tensors[0].device).checksum_all([(_bits(each), 0, "", 0) for each in tensors])
    return values


def _bits(tensor: torch.Tensor) -> Any:
    """Return a tensor's values as the kernels take them, whatever its type and strides."""
    flat = tensor.contiguous().view(-1)
    if flat.dtype not in FLOATS:
        flat = flat.view(torch.uint8)
        flat = torch.nn.functional.pad(flat, (0, len(flat) % 2)).view(torch.float16)
    return kernels_for(tensor.device).flat(flat)


def _is_used(model: torch.nn.Module, layer: Any) -> bool:
    """Return whether the model computes with a layer's packed weights. Tied input embeddings have an unused copy."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if not isinstance(layer, VocabParallelEmbedding):
        return True
    return any(each is layer for each in output_embeddings(model, layer.weight))


def _input_size(layer: Any) -> int:
    for name in ("input_size_per_partition", "input_size", "embedding_dim"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    raise ValueError(f"{type(layer).__name__} has no known input size")

"""vLLM's ``reload_weights`` on a CPU, and what it leaves wrong there: experts, biases and tied output embeddings."""

from collections.abc import Iterator
from typing import Any

import torch

VLLM_INTERNALS = {
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:UnquantizedFusedMoEMethod": "moe_kernel",
    "vllm.model_executor.layers.utils": "dispatch_cpu_unquantized_gemm(layer, remove_weight) "
    "dispatch_cpu_unquantized_gemm.cpu_linear",
    "vllm.model_executor.layers.vocab_parallel_embedding": "VocabParallelEmbedding",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": "get_model() reload_weights(weights_iterator)",
}


@torch.no_grad()
def reload_on_cpu(runner: Any, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Have vLLM's model runner load tensors by name, as it has loaded the model's checkpoint."""
    model = runner.get_model()
    _pack_experts_when_reloading(model)
    runner.reload_weights(weights_iterator=tensors)
    round_biases(model)
    _repack_output_embeddings(model)


def round_biases(model: torch.nn.Module) -> None:
    """Round the biases of packed layers to the type of their weights.

    With AMX, vLLM makes them float32 when it packs the weights. A reload then takes a float32 tensor as it is, though
    vLLM had rounded the checkpoint's tensor.
    """
    for layer in model.modules():
        bias, weight = getattr(layer, "bias", None), getattr(layer, "weight", None)
        if hasattr(layer, "cpu_linear") and isinstance(bias, torch.Tensor) and isinstance(weight, torch.Tensor):
            bias.data.copy_(bias.data.to(weight.dtype))


def _pack_experts_when_reloading(model: torch.nn.Module) -> None:
    """Have vLLM's next reload pack experts.

    Otherwise it copies unpacked weights over the packed ones, because it packs only while a layer has no kernel yet.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """Repack tied output embeddings, whose packed copy vLLM's reload leaves as it was."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

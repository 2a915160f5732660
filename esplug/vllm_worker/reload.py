"""Reload of a model's weights through vLLM: works for every model, but takes longer than :mod:`.direct_load`."""

from collections.abc import Iterator
from typing import Any

import torch

#: Private names of vLLM, checked on 0.26.0 and 0.32.0.
VLLM_INTERNALS = (
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights(weights_iterator)",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding",
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm(layer, remove_weight)",
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm.cpu_linear",
)


def reload(model_runner: Any, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Give vLLM's model all tensors of a checkpoint, by name. vLLM fuses and shards them as the model needs it."""
    model_runner.reload_weights(weights_iterator=tensors)
    _repack_output_embeddings(model_runner.get_model())


@torch.no_grad()
def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """Repack tied output embeddings. On a CPU, vLLM's reload leaves their packed copy stale."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

"""What esplug adds to each vLLM worker process. vLLM mixes this class into its own worker.

Only ``es_*`` methods, called through ``LLM.collective_rpc``. Arguments and results are plain values.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from esplug.weights import MasterWeights


class ESWorkerExtension:
    """Holds the master weights and writes a member's perturbed weights into vLLM's model.

    Weights enter through vLLM's own ``reload_weights`` with checkpoint-named tensors, which takes care of
    fused projections, tensor-parallel shards and the packed weights of the CPU backend.
    """

    rank: int
    model_runner: Any
    _es_master: "MasterWeights"

    def es_load_master(
        self, folder: str, master_dtype: Literal["float32", "model"], rank_cores: list[list[int]]
    ) -> int:
        """Read the checkpoint in ``folder`` as master weights. Returns their checksum.

        ``rank_cores`` are the CPU cores on which each tensor-parallel rank may make noise.
        """
        # numba, which the kernels need, must not be imported before vLLM's CPU engine has started.
        from esplug.weights import MasterWeights

        cores = rank_cores[self.rank]
        self._es_master = MasterWeights.load(Path(folder), master_dtype, threads=len(cores), cores=cores)
        return self._es_master.checksum()

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """Give the model ``master + scale * eps(member_seed)``; without a seed, the master itself."""
        model = self.model_runner.get_model()
        dtype = self.model_runner.model_config.dtype
        self.model_runner.reload_weights(weights_iterator=self._es_master.perturbed(member_seed, scale, dtype))
        _repack_output_embeddings(model)

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        """Add ``sum_k coefficients[k] * eps(seeds[k])`` to the master. Returns the new checksum."""
        self._es_master.update(seeds, coefficients)
        return self._es_master.checksum()

    def es_checksum(self) -> int:
        """Return the 64-bit checksum of the master weights."""
        return self._es_master.checksum()

    def es_save(self, folder: str) -> None:
        """Write the master weights, rounded to the checkpoint's types, as safetensors."""
        if self.rank == 0:  # every rank holds all of them
            self._es_master.save(Path(folder))


@torch.no_grad()
def _repack_output_embeddings(model: torch.nn.Module) -> None:
    """Renew the packed copy of tied output embeddings, which vLLM's CPU backend leaves stale on reload."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

"""vLLM's model and its paged KV cache, called directly, without vLLM's scheduler and runner."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from esplug.rollout.attention import RowAttentions

VLLM_INTERNALS = {
    "vllm.forward_context": "set_forward_context(attn_metadata, vllm_config, num_tokens, slot_mapping)",
    "vllm.v1.attention.backend:CommonAttentionMetadata": "query_start_loc query_start_loc_cpu seq_lens num_reqs "
    "num_actual_tokens max_query_len max_seq_len block_table_tensor slot_mapping",
    "vllm.v1.attention.backend:AttentionMetadataBuilder": "build(common_prefix_len, common_attn_metadata)",
    "vllm.v1.worker.utils:AttentionGroup": "get_metadata_builder() backend layer_names",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": "attn_groups kv_cache_config vllm_config get_model()",
    "vllm.v1.kv_cache_interface:FullAttentionSpec": "block_size num_kv_heads sliding_window attention_chunk_size",
}

#: Attention backends of vLLM whose metadata can be built for a batch of our own.
BACKENDS = ("FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN")


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed batch of sequences, each with some new tokens after those in the KV cache, on the model's device.

    Attributes:
        tokens: the new ones, int32, as vLLM compiles its model.
        positions, places: of the new tokens, int64; places are slots of the KV cache.
        starts: first token of each sequence, and the end; int32[sequences + 1], also ``starts_on_host``.
        lengths: of the sequences with the new tokens, int32.
        table: pages of each sequence, int32[sequences, pages].
        most_new: largest number of new tokens of a sequence.
        longest: at least the largest of ``lengths``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    starts: torch.Tensor
    starts_on_host: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    most_new: int
    longest: int


class PagedModel:
    """Computes hidden states and logits with vLLM's model, in vLLM's KV cache.

    Args:
        runner: vLLM's model runner, for which :func:`unsupported` finds nothing.
    """

    def __init__(self, runner: Any) -> None:
        (groups,) = runner.attn_groups
        (self._group,) = groups
        self._config, self._layers = runner.vllm_config, self._group.layer_names
        self.module, self.device = runner.get_model(), runner.device
        (page_size,) = _kernel_page_sizes(runner)
        spec = runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
        self.page_size: int = page_size
        self.n_pages: int = runner.kv_cache_config.num_blocks * (spec.block_size // page_size)
        self.first_page: int = spec.block_size // page_size  # vLLM leaves its block 0 unused
        self.vocabulary: int = runner.vllm_config.model_config.get_vocab_size()
        self.longest: int = runner.vllm_config.model_config.max_model_len
        self.most_tokens: int = runner.vllm_config.scheduler_config.max_num_batched_tokens
        self.most_rows: int = runner.vllm_config.scheduler_config.max_num_seqs
        compilation = runner.vllm_config.compilation_config
        self.graphs: bool = self.device.type == "cuda" and compilation.cudagraph_mode.has_full_cudagraphs()
        if self.graphs:  # larger batches have no room in the attention's buffers
            self.most_rows = min(self.most_rows, compilation.max_cudagraph_capture_size)
        self._by_row = RowAttentions(self._group, self._config, spec.num_kv_heads, self.device if self.graphs else None)
        manager: Any = getattr(self.module, "lora_manager", None)
        self._adapters = None if manager is None else next(iter(manager.punica_wrapper_mapping.values()))
        self.slots: int = getattr(manager, "lora_slots", 0)

    def hidden(self, batch: Packed) -> torch.Tensor:
        """Return the hidden states of the new tokens, whose keys and values go to the KV cache."""
        from vllm.v1.attention.backend import CommonAttentionMetadata

        if self._by_row.suit(batch):
            with self._by_row.in_place():
                return self._forward(batch, batch, {})
        common = CommonAttentionMetadata(
            query_start_loc=batch.starts,
            query_start_loc_cpu=batch.starts_on_host,
            seq_lens=batch.lengths,
            num_reqs=len(batch.lengths),
            num_actual_tokens=len(batch.tokens),
            max_query_len=batch.most_new,
            max_seq_len=batch.longest,
            block_table_tensor=batch.table,
            slot_mapping=batch.places,
        )
        metadata = self._group.get_metadata_builder(0).build(common_prefix_len=0, common_attn_metadata=common)
        return self._forward(batch, metadata, dict.fromkeys(self._layers, batch.places))

    def _forward(self, batch: Packed, metadata: Any, places: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run the model. vLLM itself stores keys and values of layers that have ``places`` in the KV cache."""
        from vllm.forward_context import set_forward_context

        attended = dict.fromkeys(self._layers, metadata)
        with set_forward_context(attended, self._config, num_tokens=len(batch.tokens), slot_mapping=places):
            states: torch.Tensor = self.module(input_ids=batch.tokens, positions=batch.positions)
        return states

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [tokens, vocabulary], without counting undefined ones."""
        logits: torch.Tensor = type(self.module).compute_logits(self.module, hidden)
        return logits

    def use_adapters(self, slots: torch.Tensor) -> None:
        """Have the next batches' tokens use these adapters, int64[tokens]: slots from 1 on, or 0 for none."""
        if self._adapters is not None:
            self._adapters.use_slots(slots - 1)


def unsupported(runner: Any) -> str:
    """Return why the rollout loop cannot use the model of this runner, or nothing."""
    config = runner.vllm_config
    parallel, model = config.parallel_config, config.model_config
    for name in ("pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            return f"{name} is not 1"
    if config.speculative_config is not None or config.kv_transfer_config is not None:
        return "vLLM speculates or transfers its KV cache"
    if getattr(model, "is_encoder_decoder", False) or getattr(runner, "supports_mm_inputs", False):
        return "the model takes more than text"
    if getattr(model, "uses_mrope", False) or getattr(model, "uses_xdrope_dim", 0):
        return "the model's positions have several dimensions"
    try:
        groups = runner.attn_groups
        from vllm.v1.kv_cache_interface import FullAttentionSpec
    except (AttributeError, ImportError):
        return "this version of vLLM has other attention groups"
    if [len(group) for group in groups] != [1]:
        return "the model's layers attend in different ways"
    ((group,),) = groups
    spec = runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    if type(spec) is not FullAttentionSpec or spec.sliding_window or spec.attention_chunk_size:
        return "not all of the model's layers attend to all tokens"
    if any(getattr(layer.impl, "sliding_window", None) not in (None, -1, (-1, -1)) for layer in _layers(config)):
        return "not all of the model's layers attend to all tokens"
    if group.backend.get_name() not in BACKENDS:
        return f"its attention backend is {group.backend.get_name()}"
    if len(_kernel_page_sizes(runner)) != 1:
        return "this version of vLLM has other KV cache blocks"
    return ""


def _layers(config: Any) -> Sequence[Any]:
    return [each for each in config.compilation_config.static_forward_context.values() if hasattr(each, "impl")]


def _kernel_page_sizes(runner: Any) -> Sequence[int]:
    """Return the sizes of the KV cache's pages as attention sees them, one for each group of layers."""
    sizes = getattr(runner, "kernel_block_sizes", None) or getattr(runner, "_kernel_block_sizes", None)
    return sizes or ()

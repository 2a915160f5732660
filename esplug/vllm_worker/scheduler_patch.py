"""Patches vLLM's scheduler to do per-token bookkeeping once per request or KV block.

This bookkeeping is Python in one thread, and a small model on a GPU waits for it. The answers stay the same, token by
token. If a version of vLLM lacks one of the names, that patch is not applied.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esplug.vllm_worker.detokenizer import Stops

VLLM_INTERNALS = {
    "vllm.v1.engine.llm_engine:LLMEngine": "engine_core",
    "vllm.v1.engine.core_client:InprocClient": "engine_core",
    "vllm.v1.engine.core:EngineCore": "scheduler",
    "vllm.v1.core.sched.scheduler:Scheduler": "_update_request_with_output(request, new_token_ids) kv_cache_manager",
    "vllm.v1.core.kv_cache_manager:KVCacheManager": "coordinator empty_kv_cache_blocks enable_caching "
    "allocate_slots(request, num_new_tokens, num_lookahead_tokens)",
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator": "single_type_managers",
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager": "req_to_blocks block_size",
    "vllm.v1.request:Request": "num_computed_tokens output_token_ids prompt_token_ids request_id sampling_params "
    "status",
    "vllm.v1.request:RequestStatus": "FINISHED_STOPPED",
}


def scheduler_of(llm: Any) -> Any:
    """Return the scheduler of an ``LLM`` that runs in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


class SchedulerPatch:
    """Skips bookkeeping of a scheduler whose results nobody reads.

    Attributes:
        whole_answers: whether answers without ``detokenize`` leave the scheduler once, when they are complete.
        whole_blocks: whether the KV cache allocates only when an answer needs another block.
        stops: texts at which such answers stop. vLLM itself can only stop at texts in answers that it detokenizes.
    """

    def __init__(self, scheduler: Any) -> None:
        self.stops: Stops | None = None
        self.whole_answers = self._output_whole_answers(scheduler)
        self.whole_blocks = _allocate_whole_blocks(scheduler)

    def _output_whole_answers(self, scheduler: Any) -> bool:
        """Have the scheduler output an answer's tokens when it ends. Returns whether that is possible."""
        try:
            from vllm.v1.request import RequestStatus

            update, stopped = scheduler._update_request_with_output, RequestStatus.FINISHED_STOPPED
        except (ImportError, AttributeError):
            return False

        def update_whole(request: Any, tokens: list[int], **others: Any) -> tuple[list[int], bool]:
            tokens, ended = update(request, tokens, **others)
            sampling, answer = request.sampling_params, request.output_token_ids
            if sampling is None or sampling.detokenize or (sampling.logprobs, sampling.prompt_logprobs) != (None, None):
                return tokens, ended
            if tokens and self.stops and self.stops.complete(request.prompt_token_ids, answer):
                request.status, ended = stopped, True
            return (list(answer) if ended else []), ended

        scheduler._update_request_with_output = update_whole
        return True


def _allocate_whole_blocks(scheduler: Any) -> bool:
    """Skip allocation while an answer's last block has room. Returns whether that is possible.

    It is not with prefix caching, nor with attention that gives up blocks, such as sliding windows.
    """
    try:
        from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

        cache = scheduler.kv_cache_manager
        managers = cache.coordinator.single_type_managers
        if [type(each) for each in managers] != [FullAttentionManager] or cache.enable_caching:
            return False
        blocks, size = managers[0].req_to_blocks, managers[0].block_size
        nothing, allocate = cache.empty_kv_cache_blocks, cache.allocate_slots
    except (ImportError, AttributeError):
        return False

    def allocate_block(request: Any, num_new_tokens: int, **others: Any) -> Any:
        held = blocks.get(request.request_id)
        if held and others.keys() == {"num_lookahead_tokens"}:
            ahead = num_new_tokens + others["num_lookahead_tokens"]
            if request.num_computed_tokens + ahead <= len(held) * size:
                return nothing
        return allocate(request, num_new_tokens, **others)

    cache.allocate_slots = allocate_block
    return True

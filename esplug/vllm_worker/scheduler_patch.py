"""Less work for vLLM's scheduler: what it does for every token, done once an answer or once a block of the KV cache.

A small model on a GPU waits for this work, which is Python in one thread. Answers are the same, token by token.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esplug.vllm_worker.detokenizer import Stops


class SchedulerPatch:
    """Spares a scheduler of vLLM what nobody looks at. Parts that its version does otherwise stay as they are.

    Args:
        scheduler: of an engine in this process.

    Attributes:
        answers: whether answers without ``detokenize`` are handed over when they are complete.
        blocks: whether the KV cache is asked for memory only when an answer needs another block.
        stops: texts at which such answers end; vLLM would want to make the texts itself.
    """

    def __init__(self, scheduler: Any) -> None:
        self.stops: Stops | None = None
        self.answers = self._hand_over_whole_answers(scheduler)
        self.blocks = _ask_once_a_block(scheduler)

    def _hand_over_whole_answers(self, scheduler: Any) -> bool:
        """Let tokens leave the scheduler when their answer ends."""
        try:
            from vllm.v1.request import RequestStatus

            note, stopped = scheduler._update_request_with_output, RequestStatus.FINISHED_STOPPED
        except (ImportError, AttributeError):
            return False

        def noted(request: Any, tokens: list[int], **others: Any) -> tuple[list[int], bool]:
            tokens, ended = note(request, tokens, **others)
            sampling, answer = request.sampling_params, request.output_token_ids
            if sampling is None or sampling.detokenize or (sampling.logprobs, sampling.prompt_logprobs) != (None, None):
                return tokens, ended
            if tokens and self.stops and self.stops.complete(request.prompt_token_ids, answer):
                request.status, ended = stopped, True
            return (list(answer) if ended else []), ended

        scheduler._update_request_with_output = noted
        return True


def _ask_once_a_block(scheduler: Any) -> bool:
    """Let an answer go on without asking while its last block has room, where no block is cached or given up."""
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

    def allocated(request: Any, num_new_tokens: int, **others: Any) -> Any:
        held = blocks.get(request.request_id)
        if held and others.keys() == {"num_lookahead_tokens"}:
            ahead = num_new_tokens + others["num_lookahead_tokens"]
            if request.num_computed_tokens + ahead <= len(held) * size:
                return nothing
        return allocate(request, num_new_tokens, **others)

    cache.allocate_slots = allocated
    return True

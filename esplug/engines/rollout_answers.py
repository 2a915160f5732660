"""Answers by the rollout loop, whose decoding stays on the device; and the choice between it and vLLM's own path."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from esplug.engines.engine_errors import reason
from esplug.engines.messages import Completion, EngineSettings, Sampling
from esplug.engines.vllm_answers import VLLMAnswers, without_end
from esplug.errors import UserError
from esplug.rollout.proof import fault
from esplug.rollout.requests import Answer, Request, Rules, Sampler
from esplug.vllm_worker.detokenizer import Detokenizer
from esplug.vllm_worker.start_proof import forget_answers

_PROVEN_SLOTS, _SCALE = 2, 0.02  # low-rank members in the proof, and the scale of their noise
logger = logging.getLogger(__name__)


class Answering(Protocol):
    """Answers prompts with the weights that are in the model."""

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, slots: Sequence[int]
    ) -> tuple[list[Completion], list[int]]:
        """Answer all prompts with the adapter in each of ``slots``; 0 stands for the model without one.

        Returns the completions, slot by slot, and for each slot the number of tokens with undefined logits.
        """


class RolloutAnswers:
    """Answers prompts with the loop in each of vLLM's workers.

    Args:
        otherwise: answers if the tokenizer or a stop text needs vLLM's own path.
    """

    def __init__(self, llm: Any, otherwise: VLLMAnswers) -> None:
        self._llm, self._otherwise = llm, otherwise
        self._detokenizer = Detokenizer(llm.get_tokenizer())
        self._end: int | None = llm.get_tokenizer().eos_token_id

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, slots: Sequence[int]
    ) -> tuple[list[Completion], list[int]]:
        """See :meth:`Answering.answer`."""
        stops = self._detokenizer.stops(sampling.stop) if sampling.stop else None
        if not self._detokenizer.works or (sampling.stop and stops is None):
            return self._otherwise.answer(prompts, seeds, sampling, slots)
        ends = frozenset(sampling.stop_token_ids) | ({self._end} if self._end is not None else frozenset())
        rules = Rules(sampling.max_tokens, Sampler(sampling.temperature, sampling.top_p), ends, stops)
        requests = [Request(ids, seed, slot) for slot in slots for ids, seed in zip(prompts, seeds, strict=True)]
        answers, undefined = roll_out(self._llm, requests, rules)
        completions = []
        for request, answer in zip(requests, answers, strict=True):
            ids = without_end(answer.tokens, answer.finished, sampling)
            text = self._detokenizer.text(request.prompt, ids)
            text = stops.cut(text) if stops else text
            kept = tuple(ids) if sampling.return_ids else ()
            completions.append(Completion(text, len(answer.tokens), answer.finished, kept))
        return completions, [undefined[slot] for slot in slots]


def roll_out(llm: Any, requests: Sequence[Request], rules: Rules) -> tuple[list[Answer], list[int]]:
    """Answer requests on all tensor-parallel ranks, which decode the same tokens. Returns the first one's result."""
    result: tuple[list[Answer], list[int]] = llm.collective_rpc("es_roll_out", args=(requests, rules))[0]
    return result


def choose(llm: Any, settings: EngineSettings, heartbeat: str, vllm: VLLMAnswers) -> tuple[Answering, str]:
    """Return vLLM's own path, or the rollout loop once it is proven to answer alike; and say which, and why.

    Raises:
        UserError: the setting is ``device``, and the loop cannot answer with this model.
    """
    if settings.rollout == "vllm":
        return vllm, "vLLM's own path"
    if settings.rollout == "auto" and (settings.device == "cpu" or settings.tensor_parallel_size > 1):
        return vllm, "vLLM's own path, as always on a CPU and with tensor parallelism"
    try:
        why = next(filter(None, llm.collective_rpc("es_prepare_rollout", args=(heartbeat,))), "") or _fault(
            llm, settings
        )
    except Exception as error:  # whatever a kernel or a capture raises with this model
        logger.warning("the rollout loop failed", exc_info=True)
        why = f"it failed ({reason(error)})"
    if not why:
        return RolloutAnswers(llm, vllm), "the loop on the device"
    if settings.rollout == "device":
        raise UserError(f"--rollout device: not for this model: {why}; choose --rollout auto or vllm")
    return vllm, f"vLLM's own path, because {why}"


def _fault(llm: Any, settings: EngineSettings) -> str:
    """Return what is wrong with the loop's answers, or nothing. Leaves other weights in adapters."""
    slots = [0]
    if settings.low_rank:
        slots = list(range(min(_PROVEN_SLOTS, settings.members_at_once) + 1))
        llm.collective_rpc("es_set_members", args=([(slot, _SCALE) for slot in slots[1:]],))
    try:
        return fault(llm, lambda requests, rules: roll_out(llm, requests, rules)[0], slots)
    finally:
        forget_answers(llm)

"""Answers by vLLM's own scheduler and runner, which work for every model that vLLM runs."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esplug.engines.messages import Completion, Sampling
from esplug.planning.shared_prefix import common_prefix
from esplug.rollout.proof import adapter
from esplug.vllm_worker.detokenizer import Detokenizer, Stops
from esplug.vllm_worker.heartbeat import Heartbeat
from esplug.vllm_worker.scheduler_patch import SchedulerPatch

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest


class VLLMAnswers:
    """Answers prompts with ``LLM.generate``.

    Args:
        patch: of the scheduler; ``None`` if it has none.
        share_prefix: whether to compute the prompts' shared prefix once. vLLM must then cache prefixes.
    """

    def __init__(self, llm: Any, heartbeat: Heartbeat, patch: SchedulerPatch | None, share_prefix: bool) -> None:
        self._llm, self._heartbeat, self._patch, self._share_prefix = llm, heartbeat, patch, share_prefix

    def answer(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, slots: Sequence[int]
    ) -> tuple[list[Completion], list[int]]:
        """Answer all prompts with the adapter in each of ``slots``; 0 stands for the model without one.

        Returns the completions, slot by slot, and for each slot the number of tokens with undefined logits.
        """
        from vllm import TokensPrompt

        adapters = [adapter(slot) for slot in slots]
        if self._share_prefix:  # otherwise vLLM caches none, and resetting takes a GPU engine tens of milliseconds
            self._llm.reset_prefix_cache()
        self._cache_shared_prefix(prompts, adapters)
        stops = self._stop_in_scheduler(sampling)
        vllm_detokenizes = not self._detokenizer.works or bool(sampling.stop and stops is None)
        outputs = self._llm.generate(
            [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts] * len(slots),
            _sampling_params(sampling, seeds, vllm_detokenizes) * len(slots),
            lora_request=[adapter for adapter in adapters for _ in prompts],
            use_tqdm=False,
        )
        completions = []
        for output in outputs:
            self._heartbeat.beat()
            (answer,) = output.outputs
            finished = answer.finish_reason == "stop"
            text = self._text(output, sampling, vllm_detokenizes)
            text = stops.cut(text) if stops else text
            ids = tuple(without_end(answer.token_ids, finished, sampling)) if sampling.return_ids else ()
            completions.append(Completion(text, len(answer.token_ids), finished, ids))
        counts = [sum(each) for each in zip(*self._llm.collective_rpc("es_take_undefined"), strict=True)]
        return completions, [counts[slot] for slot in slots]

    def _text(self, output: Any, sampling: Sampling, vllm_detokenizes: bool) -> str:
        """Return the text of vLLM's output, without the end token, which need not be a special one."""
        (answer,) = output.outputs
        ids = without_end(answer.token_ids, answer.finish_reason == "stop", sampling)
        if not vllm_detokenizes:
            return self._detokenizer.text(output.prompt_token_ids, ids)
        text: str = answer.text
        ended = len(ids) < len(answer.token_ids)
        return text.removesuffix(self._llm.get_tokenizer().decode([answer.token_ids[-1]])) if ended else text

    @functools.cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self._llm.get_tokenizer())

    def _stop_in_scheduler(self, sampling: Sampling) -> Stops | None:
        """Have the patched scheduler stop answers at ``sampling.stop``. Returns ``None`` if vLLM must do it."""
        if self._patch is None:
            return None
        wanted = bool(sampling.stop) and self._patch.whole_answers
        self._patch.stops = self._detokenizer.stops(sampling.stop) if wanted else None
        return self._patch.stops

    def _cache_shared_prefix(self, prompts: Sequence[Sequence[int]], adapters: "Sequence[LoRARequest | None]") -> None:
        """Compute the prompts' shared prefix once. Prompts that are scheduled together would each compute it."""
        from vllm import SamplingParams, TokensPrompt

        if self._share_prefix and (prefix := common_prefix(prompts)):
            once = SamplingParams(temperature=0.0, max_tokens=1)
            prefixes = [TokensPrompt(prompt_token_ids=prefix)] * len(adapters)
            self._llm.generate(prefixes, once, lora_request=list(adapters), use_tqdm=False)


def without_end(ids: Sequence[int], finished: bool, sampling: Sampling) -> Sequence[int]:
    """Return the token ids of an answer without the end token."""
    return ids[:-1] if finished and ids and ids[-1] in sampling.stop_token_ids else ids


def _sampling_params(sampling: Sampling, seeds: Sequence[int], vllm_detokenizes: bool) -> "list[SamplingParams]":
    """Return vLLM's parameters for each seed. vLLM looks for stop texts only in answers that it detokenizes."""
    from vllm import SamplingParams

    return [
        SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) if vllm_detokenizes else [],
            stop_token_ids=list(sampling.stop_token_ids),
            include_stop_str_in_output=True,
            detokenize=vllm_detokenizes,
            seed=seed if sampling.temperature > 0 else None,
        )
        for seed in seeds
    ]

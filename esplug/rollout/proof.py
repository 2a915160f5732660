"""Proof at the start of an engine: the rollout loop answers as vLLM itself does.

vLLM scores the loop's greedy answers. Their tokens must be vLLM's most probable ones, or almost as probable on average,
because sums depend on the batch. Single tokens prove nothing: some models amplify the smallest difference.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from esplug.rollout.requests import Answer, Request, Rules

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

VLLM_INTERNALS = {
    "vllm": "LLM.llm_engine SamplingParams TokensPrompt",
    "vllm.config:ModelConfig": "dtype max_model_len get_vocab_size()",
    "vllm.lora.request": "LoRARequest",
}

_TOKENS = 12
_PROMPTS = 1, 16, 17, 40, 65  # lengths: before, at and after the ends of pages, and one that follows others
_TOLERANCE = {"torch.float32": 0.01}  # of an answer's log-probability for each token
_COARSE = 0.25  # in other types; an answer from a wrong place or adapter loses more


def fault(llm: Any, roll_out: Callable[[Sequence[Request], Rules], list[Answer]], slots: Sequence[int]) -> str:
    """Return how the loop's answers are worse than vLLM's, or nothing. ``slots`` are adapters; 0 stands for none."""
    config = llm.llm_engine.model_config
    room, vocabulary = config.max_model_len - _TOKENS, config.get_vocab_size()
    if room < 1:
        return f"max_model_len is less than {_TOKENS + 1}"
    prompts = [[(31 + 7 * i * (n + 1)) % vocabulary for i in range(min(n, room))] for n in _PROMPTS]
    requests = [Request(prompt, adapter=slot) for slot in slots for prompt in prompts]
    answers = roll_out(requests, Rules(_TOKENS))
    llm.reset_prefix_cache()
    worst = 0.0
    for answer, best, own in zip(answers, *_scores(llm, requests, answers), strict=True):
        if len(answer.tokens) != _TOKENS:
            return f"an answer has {len(answer.tokens)} tokens instead of {_TOKENS}"
        behind = [one - other for one, other in zip(best, own, strict=True)]
        known = [each for each in behind if each == each]  # the run refuses a model that answers NaN
        worst = max(worst, sum(known) / _TOKENS)
    if worst > _TOLERANCE.get(str(config.dtype), _COARSE):
        return f"an answer's tokens are {worst:.2g} less probable than vLLM's on average"
    return ""


def _scores(
    llm: Any, requests: Sequence[Request], answers: Sequence[Answer]
) -> tuple[list[list[float]], list[list[float]]]:
    """Return vLLM's log-probabilities: the largest at each token of each answer, and those of the tokens."""
    from vllm import SamplingParams, TokensPrompt

    scoring = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
    texts = [[*request.prompt, *answer.tokens] for request, answer in zip(requests, answers, strict=True)]
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=text) for text in texts],
        scoring,
        lora_request=[adapter(request.adapter) for request in requests],
        use_tqdm=False,
    )
    llm.reset_prefix_cache()
    best, own = [], []
    for text, output, answer in zip(texts, outputs, answers, strict=True):
        count = len(answer.tokens)
        entries = list(zip(text, output.prompt_logprobs, strict=True))[len(text) - count :]
        best.append([max(each.logprob for each in entry.values()) for _, entry in entries])
        own.append([entry[token].logprob for token, entry in entries])
    return best, own


def adapter(slot: int) -> "LoRARequest | None":
    """Return vLLM's request for the adapter in a slot; ``None`` for the model without an adapter."""
    if not slot:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"member {slot}", slot, "made from its seed")

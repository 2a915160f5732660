"""Proof at the start of an engine: vLLM's model follows the weights that esplug writes, and returns to the loaded ones.

It covers both ways of writing weights. vLLM's model is first left as vLLM has loaded it, then holds a perturbed member,
then the unperturbed master. Parameters and log-probabilities must change with the member, and come back with the
master. Runs in the engine actor.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from esplug.errors import UserError

if TYPE_CHECKING:
    from esplug.vllm_worker.extension import MasterSetup

VLLM_INTERNALS = {
    "vllm": "LLM.llm_engine SamplingParams TokensPrompt",
    "vllm.v1.engine.llm_engine:LLMEngine": "model_config",
    "vllm.config:ModelConfig": "max_model_len get_vocab_size()",
}

_MEMBER = 1, 0.1  # seed, and a scale that moves every weight, rounded to any type, but not to infinity
_ANSWER_TOKENS = 4
_GPU_TOLERANCE = 0.01  # of log-probabilities, because a GPU's kernels may add in another order

Outputs: TypeAlias = Sequence[float]


def load_and_prove(llm: Any, setup: "MasterSetup") -> tuple[str, ...]:
    """Load the master weights in each worker of an ``LLM``, and prove that its model follows them.

    Returns the names of the checkpoint's tensors that the model does not use.

    Raises:
        UserError: the model does not hold exactly the weights that are written.
    """
    cpu = all(llm.collective_rpc("es_prepare"))
    loaded, again = _outputs(llm), _outputs(llm)
    tolerance = max(0.0 if cpu else _GPU_TOLERANCE, 4 * _distance(loaded, again))
    direct = all(llm.collective_rpc("es_load", args=(setup,)))
    if any(value != value for value in loaded):
        forget_answers(llm)
        return ()  # the run refuses a model that answers with NaN
    fault = _fault(llm, loaded, tolerance)
    if fault and direct:
        logging.getLogger(__name__).warning("esplug writes weights through vLLM's reload_weights: %s", fault)
        llm.collective_rpc("es_load_without_places", args=(setup,))
        fault = _fault(llm, loaded, tolerance)
    if fault:
        kind = ", ".join(json.loads((Path(setup.model) / "config.json").read_text()).get("architectures") or ["model"])
        raise UserError(
            f"{setup.model}: this vLLM answers wrongly once the weights of a {kind} are written anew ({fault}); "
            "choose a model that docs/models.md lists"
        )
    unread = [set(each) for each in llm.collective_rpc("es_unread")]
    return tuple(sorted(set.intersection(*unread)))


def _fault(llm: Any, loaded: Outputs, tolerance: float) -> str:
    """Write a member and then the master. Returns what is wrong, or nothing."""
    try:
        for seed, scale in (_MEMBER, (None, 0.0)):
            for fault in filter(None, llm.collective_rpc("es_write_and_check", args=(seed, scale))):
                return str(fault)
            far = _distance(loaded, _outputs(llm))
            if seed is None and far > tolerance:
                return f"log-probabilities of fixed tokens are off by up to {far:.2g}"
            if seed is not None and far <= tolerance:
                return "log-probabilities do not change with the weights"
        return ""
    finally:
        forget_answers(llm)


def forget_answers(llm: Any) -> None:
    """Leave no trace of earlier answers, such as NaN in the KV cache."""
    if any(map(any, llm.collective_rpc("es_take_undefined"))):
        llm.collective_rpc("es_clear_cache")
    llm.reset_prefix_cache()


def _outputs(llm: Any) -> Outputs:
    """Return log-probabilities of a fixed prompt's tokens and of a greedy answer's, and the answer's tokens."""
    from vllm import SamplingParams, TokensPrompt

    config = llm.llm_engine.model_config
    length = max(2, min(16, config.max_model_len - _ANSWER_TOKENS))
    prompt = [(17 + 5 * i) % config.get_vocab_size() for i in range(length)]
    count = max(1, min(_ANSWER_TOKENS, config.max_model_len - length))
    sampling = SamplingParams(
        temperature=0.0, max_tokens=count, prompt_logprobs=0, logprobs=0, ignore_eos=True, detokenize=False
    )
    llm.reset_prefix_cache()
    (output,) = llm.generate([TokensPrompt(prompt_token_ids=prompt)], sampling, use_tqdm=False)
    (answer,) = output.outputs
    entries = zip([*prompt[1:], *answer.token_ids], [*output.prompt_logprobs[1:], *answer.logprobs], strict=True)
    return [*(float(entry[token].logprob) for token, entry in entries), *map(float, answer.token_ids)]


def _distance(one: Outputs, other: Outputs) -> float:
    """Return the largest difference; NaN equals only NaN."""
    pairs = zip(one, other, strict=True)
    different = [(a, b) for a, b in pairs if a != b and (a == a or b == b)]
    return max((abs(a - b) if abs(a - b) < float("inf") else float("inf") for a, b in different), default=0.0)

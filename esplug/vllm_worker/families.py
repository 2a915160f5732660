"""Families of models that are tested with esplug, and how it writes the weights of each."""

from collections.abc import Iterable

#: By architecture, as in a model's ``config.json``: whether esplug writes its weights directly into vLLM's model.
DIRECT = {
    "GemmaForCausalLM": True,
    "Gemma2ForCausalLM": True,
    "Gemma3ForCausalLM": True,
    "Glm4MoeForCausalLM": True,
    "GraniteForCausalLM": True,
    "GraniteMoeForCausalLM": False,
    "LlamaForCausalLM": True,
    "MistralForCausalLM": True,
    "MixtralForCausalLM": True,
    "Olmo2ForCausalLM": True,
    "OlmoeForCausalLM": True,
    "Phi3ForCausalLM": True,
    "Qwen2ForCausalLM": True,
    "Qwen2MoeForCausalLM": True,
    "Qwen3ForCausalLM": True,
    "Qwen3MoeForCausalLM": True,
}


def how_written(architectures: Iterable[str]) -> str:
    """Say how esplug is expected to write the weights of a model of these architectures."""
    known = [DIRECT[each] for each in architectures if each in DIRECT]
    if not known:
        return (
            "an architecture that is not tested with esplug; each engine checks at its start that it can be perturbed"
        )
    return "weights are written directly" if known[0] else "weights are written through vLLM's loader, which is slower"

"""Architectures that vLLM and transformers implement, and what each is for."""

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

_REGISTRY = ("model_executor", "models", "registry.py")
_CONFIGS = ("transformers_utils", "config.py")

#: Tables of vLLM's registry, and what their models do.
_GENERATES = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
_OTHER_USES = {
    "_SPECULATIVE_DECODING_MODELS": "a draft model for speculative decoding",
    "_REWARD_MODELS": "a reward model",
    "_SEQUENCE_CLASSIFICATION_MODELS": "a sequence classifier or reward model",
    "_TOKEN_CLASSIFICATION_MODELS": "a token classifier",
    "_LATE_INTERACTION_MODELS": "an embedding model",
    "_EMBEDDING_MODELS": "an embedding model",
}

#: What the end of an architecture's name says.
_SUFFIXES = {
    "ForSequenceClassification": "a sequence classifier or reward model",
    "ForTokenClassification": "a token classifier",
    "RewardModel": "a reward model",
    "ForMaskedLM": "a masked language model",
    "ForQuestionAnswering": "a question-answering model",
    "ForMultipleChoice": "a multiple-choice model",
    "ForPreTraining": "a pre-training model",
    "ForSeq2SeqLM": "an encoder-decoder model",
    "Model": "a model without a language-model head, such as an embedding model",
}


def other_use(architecture: str) -> str | None:
    """Return what a model is for, such as ``an embedding model``; ``None`` if it generates text or is unknown."""
    tables = _vllm_tables()
    if any(architecture in tables.get(name, ()) for name in _GENERATES):
        return None
    listed = (use for name, use in _OTHER_USES.items() if architecture in tables.get(name, ()))
    ends = (use for end, use in _SUFFIXES.items() if architecture.endswith(end) and architecture not in _causal())
    return next(listed, None) or next(ends, None)


def is_multimodal(architecture: str) -> bool:
    """Return whether vLLM lists an architecture among the multimodal ones."""
    return architecture in _vllm_tables().get("_MULTIMODAL_MODELS", ())


def is_implemented(architecture: str) -> bool:
    """Return whether vLLM or transformers implements an architecture, as far as can be told without importing vLLM."""
    tables = _vllm_tables()
    plugins = (plugin for plugin in entry_points(group="vllm.general_plugins") if not plugin.value.startswith("vllm."))
    if not tables or any(plugins):  # they can register architectures
        return True
    return any(architecture in names for names in tables.values()) or architecture in _causal()


def has_config_class(model_type: str) -> bool:
    """Return whether transformers or vLLM can read the configuration of a model of this type without its own code."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES or model_type in _vllm_config_types()


def has_tokenizer_class(model_type: str, tokenizer_class: str) -> bool:
    """Return whether transformers has the tokenizer of a model."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    named = tokenizer_class and tokenizer_class_from_name(tokenizer_class) is not None
    return bool(named) or model_type in TOKENIZER_MAPPING_NAMES


def _causal() -> set[str]:
    """Return the architectures of transformers that continue text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    names: set[str] = set()
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        for value in mapping.values():
            names |= {value} if isinstance(value, str) else set(value)
    return names


@cache
def _vllm_tables() -> Mapping[str, frozenset[str]]:
    """Return the architectures in each table of vLLM's registry; ``{}`` if there is no such file.

    The file is parsed instead of imported, because importing vLLM takes seconds and fixes its environment variables.
    """
    tables = {}
    for node in _statements(_REGISTRY):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Dict):
            keys = (key.value for key in node.value.keys if isinstance(key, ast.Constant))
            tables[target.id] = frozenset(key for key in keys if isinstance(key, str))
    return {name: tables[name] for name in (*_GENERATES, *_OTHER_USES) if name in tables}


@cache
def _vllm_config_types() -> frozenset[str]:
    """Return the model types for which vLLM brings a configuration class."""
    for node in _statements(_CONFIGS):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id == "_CONFIG_REGISTRY" and isinstance(node.value, ast.Call):
            return frozenset(keyword.arg for keyword in node.value.keywords if keyword.arg)
    return frozenset()


def _statements(place: tuple[str, ...]) -> list[ast.Assign | ast.AnnAssign]:
    """Return the assignments at the top level of one of vLLM's modules."""
    spec = importlib.util.find_spec("vllm")  # does not import it
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None
    try:
        tree = ast.parse(Path(folder or ".", *place).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    return [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]

"""Kinds of models: refuses those that a run cannot use, before anything is loaded, and says what to use instead.

A kind is told by a model's small files (:mod:`.model_files`) and the headers of its weights. Every command uses
:func:`check_model`.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esplug.checkpoints import architectures, quantisation
from esplug.checkpoints.model_files import ModelFiles
from esplug.checkpoints.safetensors_shards import TensorHeader, read_headers
from esplug.config import RunConfig
from esplug.errors import UserError

#: Parts of a configuration that describe inputs other than text.
_OTHER_INPUTS = ("vision_config", "audio_config", "visual", "vision_tower", "mm_vision_tower", "speech_config")


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What a command does with a model.

    Attributes:
        perturbs: whether it changes weights. A quantised model can only be evaluated as it is.
        trusts_code: whether Python code in the model's folder may run, or none is needed.
    """

    perturbs: bool = True
    trusts_code: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> "ModelUse":
        """Return what a run of these settings does."""
        return cls(config.n_iterations > 0, config.trust_remote_code)


TRAINING = ModelUse()
_NO_SIGNAL = ", although text gives no reward signal for them"


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A model that a run can use.

    Attributes:
        quantised: how its weights are quantised, such as ``AWQ, 4 bits``; ``None`` if they are plain.
        code: Python files and classes that it brings and needs, which run with ``--trust-remote-code``.
        multimodal: whether it takes images, video or audio besides text.
        use: what the command does with it.
    """

    quantised: str | None
    code: tuple[str, ...]
    multimodal: bool
    use: ModelUse

    def notes(self) -> list[str]:
        """Return what users should know about a run with this model, one sentence each."""
        notes = []
        if self.code:
            code = ", ".join(self.code)
            notes.append(f"--trust-remote-code: the model's own Python code ({code}) runs on every machine of the run")
        if self.quantised:
            notes.append(f"the model is quantised ({self.quantised}): it is evaluated as it is, and cannot be trained")
        if self.multimodal:
            effect = "all its weights are perturbed and updated, those that read images or sound too" + _NO_SIGNAL
            notes.append(f"a multimodal model: prompts are text only{f'; {effect}' if self.use.perturbs else ''}")
        return notes


def check_model(files: ModelFiles, use: ModelUse, label: str) -> ModelKind:
    """Return the kind of a model.

    Args:
        files: the model's files.
        use: what the command does with it.
        label: flag and name, for error messages.

    Raises:
        UserError: the command cannot use it, such as an adapter, or a quantised model in training.
    """
    if fault := _no_model(files) or _no_weights(files):
        raise UserError(f"{label}: {fault}")
    config = _read_config(files, label)
    if fault := _unfit(files, config):
        raise UserError(f"{label}: {fault}")
    code = _needed_code(files, config)
    if code and not use.trusts_code:
        raise UserError(
            f"{label}: this model needs Python code of its own ({', '.join(code)}); read that code, then add "
            "--trust-remote-code to run it, or choose a model that transformers implements"
        )
    tensors: Mapping[str, TensorHeader] = read_headers(files.folder) if files.complete else {}
    quantised = quantisation.quantised_as(files, tensors)
    if quantised and use.perturbs:
        raise UserError(
            f"{label}: a quantised model ({quantised}), whose weights cannot be perturbed; "
            f"{quantisation.remedy(files, quantised)}"
        )
    return ModelKind(quantised, code, _is_multimodal(config), use)


def _no_model(files: ModelFiles) -> str | None:
    """Say what a folder holds that is not a model of Hugging Face's format."""
    if "adapter_config.json" in files.names:
        return _adapter(files)
    if (gguf := files.matching("*.gguf")) and not files.matching("*.safetensors", "pytorch_model*.bin"):
        return f"GGUF files ({gguf[0]}), which cannot be perturbed; {quantisation.remedy(files, 'GGUF')}"
    if "model_index.json" in files.names:
        return "a pipeline of diffusers, which makes images, not a language model; give a causal language model"
    if "modules.json" in files.names or "config_sentence_transformers.json" in files.names:
        return "an embedding model of sentence-transformers, which generates no text; give a causal language model"
    if "config.json" in files.names:
        return None
    if "params.json" in files.names:
        return "a model in its maker's own format (params.json); give the Hugging Face version, which has config.json"
    pth = files.matching("*.pth")
    instead = f"; give the file itself, {files.folder / pth[0]}" if pth else ""
    return f"not a Hugging Face model folder (no config.json){instead}"


def _adapter(files: ModelFiles) -> str:
    adapter = files.json("adapter_config.json")
    base, kind = adapter.get("base_model_name_or_path"), str(adapter.get("peft_type") or "LoRA")
    kind = "LoRA" if kind.upper() == "LORA" else kind
    of = f" of {base}" if isinstance(base, str) and base.strip() and base.isprintable() else ""
    if files.matching("model*.safetensors", "pytorch_model*.bin") and "config.json" in files.names:
        return (
            f"a model and a {kind} adapter{of} in one folder; move adapter_config.json away to train the model "
            "without the adapter, or merge the adapter with peft's merge_and_unload()"
        )
    return (
        f"a {kind} adapter{of}, not a whole model; merge it with peft: AutoPeftModelForCausalLM.from_pretrained("
        f"{files.name!r}).merge_and_unload().save_pretrained(DIR), save the tokenizer there, too, and give DIR"
    )


def _no_weights(files: ModelFiles) -> str | None:
    if files.matching("*.safetensors"):
        return None
    found = files.matching("*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx")
    found = [name for name in found if not name.startswith(("training_args", "optimizer", "scheduler", "rng_state"))]
    if not found:
        return "no *.safetensors weights there, only other files; download or save the model again (save_pretrained)"
    return (
        f"no *.safetensors weights there, only {found[0]}; convert them with transformers: "
        "from_pretrained, then save_pretrained(DIR), for the tokenizer, too"
    )


def _read_config(files: ModelFiles, label: str) -> dict[str, Any]:
    try:
        config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{label}: config.json: damaged ({error}); fetch the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{label}: config.json: damaged (not an object); fetch the model again")
    return config


def _unfit(files: ModelFiles, config: Mapping[str, Any]) -> str | None:
    """Say why vLLM cannot generate text with a model of this configuration."""
    kinds, wanted = _architectures(config), "give a causal language model"
    listed = ", ".join(kinds)
    if config.get("is_encoder_decoder") is True:
        return f"an encoder-decoder model ({listed or config.get('model_type')}), which vLLM does not run; {wanted}"
    uses = [architectures.other_use(kind) for kind in kinds]
    if uses and all(uses):
        return f"{uses[0]} ({listed}), which generates no text; {wanted}"
    if config.get("vision_config") and _is_multimodal(config) and importlib.util.find_spec("torchvision") is None:
        return f"a multimodal model ({listed}), for which vLLM needs torchvision; install the build that matches torch"
    if kinds and not _auto_map(config) and not any(map(architectures.is_implemented, kinds)):
        return (
            f"neither vLLM nor transformers, as installed, implements {listed}; upgrade them, or choose another model"
        )
    return None


def _needed_code(files: ModelFiles, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the code of a model that neither transformers nor vLLM replaces by their own."""
    needed, kind = [], str(config.get("model_type", ""))
    for auto_class, reference in _auto_map(config).items():
        if auto_class == "AutoConfig":
            lacking = not architectures.has_config_class(kind)
        elif auto_class.startswith("AutoModel"):
            lacking = not any(map(architectures.is_implemented, _architectures(config)))
        else:
            continue
        needed += [reference] if lacking else []
    tokenizer = files.json("tokenizer_config.json")
    own = _auto_map(tokenizer).get("AutoTokenizer")
    if own and not architectures.has_tokenizer_class(kind, str(tokenizer.get("tokenizer_class", ""))):
        needed.append(own)
    return tuple(dict.fromkeys(map(_module, needed)))


def _auto_map(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a configuration's references to Python classes of the model, such as ``modeling_x.XForCausalLM``."""
    stated = config.get("auto_map")
    stated = {"AutoTokenizer": stated} if isinstance(stated, list | tuple) else stated
    found: dict[str, str] = {}
    for name, value in stated.items() if isinstance(stated, dict) else ():
        values = value if isinstance(value, list | tuple) else [value]
        first = next((each for each in values if isinstance(each, str) and each.isprintable()), None)
        found |= {str(name): first} if first else {}
    return found


def _module(reference: str) -> str:
    """Return the file of a reference: ``modeling_x.py`` for ``modeling_x.XForCausalLM``."""
    repo, _, name = reference.rpartition("--")
    return f"{name.partition('.')[0]}.py" + (f" of {repo}" if repo else "")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    kinds = config.get("architectures")
    return [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []


def _is_multimodal(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) for key in _OTHER_INPUTS) or any(
        map(architectures.is_multimodal, _architectures(config))
    )

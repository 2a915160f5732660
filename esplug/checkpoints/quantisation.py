"""Quantisation of a model: tells from its configuration and the headers of its weights whether they are quantised."""

from collections.abc import Mapping
from typing import Any

from esplug.checkpoints.model_files import ModelFiles
from esplug.checkpoints.safetensors_shards import TensorHeader

_METHODS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "mxfp4": "MXFP4",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
    "torchao": "torchao",
    "gguf": "GGUF",
}

#: Classes of transformers that load a quantised model with plain weights.
_DEQUANTISE = {
    "FP8": "FineGrainedFP8Config(dequantize=True)",
    "MXFP4": "Mxfp4Config(dequantize=True)",
    "compressed-tensors": "CompressedTensorsConfig(dequantize=True)",
}

#: Files beside config.json in which tools note how they quantised, and those tools.
_NOTES = {"hf_quant_config.json": "ModelOpt", "quantize_config.json": "GPTQ", "quant_config.json": "AWQ"}
_PACKED = ("qweight", "qzeros", "weight_packed", "weight_scale", "weight_scale_inv", "weight_shape", "codebooks")
_PACKED_EXPERTS = ("_blocks", "_scales")  # of MXFP4


def quantised_as(files: ModelFiles, tensors: Mapping[str, TensorHeader]) -> str | None:
    """Return how a model is quantised, with the evidence; ``None`` if its weights are plain.

    ``tensors`` are the headers of its safetensors, or empty if they are not on this machine.
    """
    found = next(filter(None, (_packed(name, tensor) for name, tensor in tensors.items())), None)
    method = _stated(files)
    if method and tensors and found is None:
        stored = "/".join(sorted({tensor.dtype for tensor in tensors.values() if tensor.is_float}))
        return f"{method}, says its config.json, though the files hold {stored} weights"
    return method or found


def remedy(files: ModelFiles, how: str) -> str:
    """Say which model to use instead of a quantised one, and how to get it."""
    if "though the files hold" in how:
        return "remove quantization_config from its config.json if the weights are the original ones"
    source = files.made_from()
    wanted = f"the unquantised model ({source})" if source else "the unquantised model that it was made from"
    method = how.partition(",")[0].partition(" ")[0]
    if method in _DEQUANTISE:
        load = f"from_pretrained(..., quantization_config={_DEQUANTISE[method]})"
        return f"use {wanted}, or dequantise it with transformers: {load}, then save_pretrained"
    if method == "bitsandbytes":
        return f"use {wanted}, or dequantise it with transformers: from_pretrained, dequantize(), save_pretrained"
    return f"use {wanted}"


def _stated(files: ModelFiles) -> str | None:
    """Return what the configuration files say, such as ``AWQ, 4 bits``."""
    config = files.json("config.json")
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            stated = part.get(key)
            if isinstance(stated, dict) and stated:
                return _named(stated, "compressed-tensors" if key == "compression_config" else "")
    for name, tool in _NOTES.items():
        if name in files.names:
            stated = files.json(name)
            algorithm = stated.get("quantization", {})
            kind = algorithm.get("quant_algo") if isinstance(algorithm, dict) else None
            return f"{tool}, {kind}" if isinstance(kind, str) else _named(stated, tool.lower())
    return None


def _named(stated: Mapping[str, Any], default: str) -> str:
    method = stated.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in stated else default) or "quantised"
    method = str(method).lower()
    name = next((label for key, label in _METHODS.items() if method == key or method.startswith(f"{key}_")), method)
    bits = stated.get("bits", stated.get("w_bit"))
    bits = 4 if stated.get("load_in_4bit") else 8 if stated.get("load_in_8bit") else bits
    return f"{name}, {bits} bits" if isinstance(bits, int) else name


def _packed(name: str, tensor: TensorHeader) -> str | None:
    """Return what a tensor of a quantised model is; ``None`` for plain weights and for buffers such as positions."""
    last, integer = name.rpartition(".")[2], tensor.dtype[0] in "IU"
    if tensor.is_float and tensor.element_bytes == 1:
        return f"{tensor.dtype.partition('_')[0]}, tensor {name}".replace("F8,", "FP8,")
    if last in _PACKED or (
        integer and (last.endswith(_PACKED_EXPERTS) or (last == "weight" and len(tensor.shape) > 1))
    ):
        return f"{tensor.dtype} values, tensor {name}"
    return None

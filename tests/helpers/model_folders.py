"""Model folders made of small files and of safetensors headers, for tests that load no model."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
PLAIN = {"model.embed_tokens.weight": ("BF16", (8, 4)), "model.layers.0.mlp.down_proj.weight": ("BF16", (4, 4))}
_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "BF16": 16, "F16": 16}


def make_folder(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write files: bytes and text as they are, tensors (``{name: (type, shape)}``) as zeros, others as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if name.endswith(".safetensors"):
            (folder / name).write_bytes(_safetensors(content))
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8")
    return folder


def _safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * _BITS.get(dtype, 8) // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)

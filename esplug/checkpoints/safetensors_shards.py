"""Safetensors files of a model folder: finds, reads and writes them, with their index."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.errors import UserError

if TYPE_CHECKING:
    import torch

_BITS = re.compile(r"[A-Z]+(\d+)")
_SHARD_BYTES = 2 * 10**9  # a shard is written in one call, which must not look like an engine that hangs
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """A tensor's type, as safetensors names it (``BF16``, ``F8_E4M3``, ``I32``), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the type is a floating-point one."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def element_bytes(self) -> int:
        """Bytes of an element, at least 1."""
        bits = _BITS.match(self.dtype)
        return max(1, int(bits[1]) // 8) if bits else 1


def plan_shards(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Distribute tensors of these ``sizes``, in order, over files of about 2 GB at most. A larger one gets its own."""
    shards: list[list[str]] = [[]]
    remaining = _SHARD_BYTES
    for name, size in sizes.items():
        if size > remaining and shards[-1]:
            shards.append([])
            remaining = _SHARD_BYTES
        shards[-1].append(name)
        remaining -= size
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def write_index(folder: Path, shards: Mapping[str, list[str]], sizes: Mapping[str, int]) -> None:
    """Write the index of a model's weight files if there are several."""
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def tensors_by_file(folder: Path) -> dict[Path, list[str]]:
    """Return the weight files of a model folder, each with the tensors to read from it.

    If the folder has an index, only the index decides which file holds which tensor.
    """
    index = folder / _INDEX
    if index.is_file():
        try:
            places: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
            files = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index}: not a safetensors index ({error}); fetch the model again") from error
        return {folder / file: [name for name in places if places[name] == file] for file in files}
    content: dict[Path, list[str]] = {}
    seen: dict[str, str] = {}
    for path in _unindexed(folder):
        with open_safetensors(path, "numpy") as tensors:
            content[path] = list(tensors.keys())
        if (twice := next((name for name in content[path] if name in seen), None)) is not None:
            raise UserError(
                f"{folder}: tensor {twice} is in {seen[twice]} and in {path.name}; "
                f"remove the file that is not part of the model, or add {_INDEX}"
            )
        seen |= dict.fromkeys(content[path], path.name)
    return content


@contextmanager
def open_safetensors(file: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file with ``safe_open``. With ``framework="numpy"``, torch is not needed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework=framework) as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: missing or damaged ({error}); fetch the model again") from error


def write_tensors(file: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write a safetensors file. Raises ``OSError`` if the disk is full, unlike the library."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"(?:os error |code: )(\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def read_tensors(folder: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield the tensors of a model folder, file by file."""
    for file, names in tensors_by_file(folder).items():
        with open_safetensors(file) as content:
            for name in names:
                yield name, content.get_tensor(name)


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return the types and shapes of a model folder's tensors from the files' headers."""
    found = {}
    for file, names in tensors_by_file(folder).items():
        with open_safetensors(file, "numpy") as content:
            for name in names:
                header = content.get_slice(name)
                found[name] = TensorHeader(header.get_dtype(), tuple(header.get_shape()))
    return found


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model folder's tensors from the files' headers."""
    return {name: header.shape for name, header in read_headers(folder).items()}


def max_element_bytes(folder: Path) -> int:
    """Return the size of the largest element type in a model folder, in bytes: usually 2 or 4."""
    return max(header.element_bytes for header in read_headers(folder).values())


def _unindexed(folder: Path) -> list[Path]:
    """Return the weight files of a model folder without an index."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        others = sorted(file.name for suffix in ("bin", "pth", "pt", "gguf") for file in folder.glob(f"*.{suffix}"))
        instead = f"only {others[0]}" if others else "no weights"
        raise UserError(
            f"{folder}: no *.safetensors, {instead} there; load the model with transformers and write it with "
            "save_pretrained(folder)"
        )
    return found

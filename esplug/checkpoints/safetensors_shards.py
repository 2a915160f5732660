"""The safetensors files of a model folder: which there are, reading and writing them."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.errors import UserError

if TYPE_CHECKING:
    import torch

_SHARD_BYTES = 2 * 10**9  # written in one go, which must not look like an engine that hangs
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def plan_shards(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the weight files of a model to be written, each with its tensors, in order.

    Args:
        sizes: bytes of each tensor. No file exceeds about 2 GB, unless a single tensor does.
    """
    shards: list[list[str]] = [[]]
    room = _SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = _SHARD_BYTES
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {_SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def write_index(folder: Path, shards: Mapping[str, list[str]], sizes: Mapping[str, int]) -> None:
    """Write the index of a model's weight files, where it has several; arguments as for :func:`plan_shards`."""
    if len(shards) > 1:
        places = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def tensor_files(folder: Path) -> dict[Path, list[str]]:
    """Return the weight files of a model folder, each with the tensors to read from it.

    Where there is an index file, it alone says which file holds which tensor.

    Raises:
        UserError: there are no safetensors, one is missing or damaged, or a tensor is in two files without an
            index to choose.
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
    seen: dict[str, Path] = {}
    for path in _unindexed(folder):
        with opened(path, "numpy") as tensors:
            content[path] = list(tensors.keys())
        for name in content[path]:
            if name in seen:
                raise UserError(
                    f"{folder}: tensor {name} is in {seen[name].name} and in {path.name}; "
                    f"remove the file that is not part of the model, or add {_INDEX}"
                )
            seen[name] = path
    return content


@contextmanager
def opened(file: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file of a model for reading, as ``safe_open`` does; its header needs no torch.

    Raises:
        UserError: it is missing or damaged, or a tensor read from it is.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework=framework) as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: missing or damaged ({error}); fetch the model again") from error


def write_tensors(file: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write a safetensors file; the library's own error for a full disk becomes the system's."""
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
    for file, names in tensor_files(folder).items():
        with opened(file) as content:
            for name in names:
                yield name, content.get_tensor(name)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model folder's tensors, without reading these."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file, names in tensor_files(folder).items():
        with opened(file, "numpy") as content:
            shapes |= {name: tuple(content.get_slice(name).get_shape()) for name in names}
    return shapes


def widest(folder: Path) -> int:
    """Return the bytes of an element in the tensors of a model folder that have most: 2 or 4, as a rule."""
    types = set()
    for file, names in tensor_files(folder).items():
        with opened(file, "numpy") as content:
            types |= {content.get_slice(name).get_dtype() for name in names}
    return max(int("".join(filter(str.isdigit, kind)) or 8) // 8 for kind in types)


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

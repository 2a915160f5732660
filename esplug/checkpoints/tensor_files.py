"""Tensors in safetensors files, read and written a chunk at a time.

Files are read rather than memory-mapped: mapped pages would count as this process's memory.
"""

import json
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from esplug.checkpoints.safetensors_shards import open_safetensors, plan_shards, tensors_by_file, write_index
from esplug.errors import UserError

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16", "float32")
CHUNK = 2**20  # elements to read, update and write at a time

_FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
# The order in which the safetensors library lays out a file. Types not listed come last.
_ORDER = ("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open file."""

    name: str
    dtype: str  # as safetensors names it, such as BF16
    shape: tuple[int, ...]
    descriptor: int  # of the file
    offset: int  # position in the file, in bytes
    nbytes: int

    @property
    def is_float(self) -> bool:
        """Whether it is floating-point. Other tensors are only copied."""
        return self.dtype in _FLOATS

    @property
    def count(self) -> int:
        """Number of elements; for a tensor that is only copied, number of bytes."""
        return prod(self.shape) if self.is_float else self.nbytes

    def empty(self, count: int) -> "torch.Tensor":
        """Return an uninitialised flat tensor of this floating-point type."""
        import torch

        return torch.empty(count, dtype=getattr(torch, _FLOATS[self.dtype]), device="cpu")

    def read(self, content: memoryview, offset: int) -> None:
        """Fill ``content`` with the tensor's bytes from ``offset`` on."""
        done = 0
        while done < len(content):
            read_now = os.preadv(self.descriptor, [content[done:]], self.offset + offset + done)
            if not read_now:
                raise UserError(f"the base model's tensor {self.name} is cut short; fetch the model again")
            done += read_now

    def write(self, content: memoryview, offset: int) -> None:
        """Write ``content`` to the tensor's bytes from ``offset`` on."""
        done = 0
        while done < len(content):
            done += os.pwrite(self.descriptor, content[done:], self.offset + offset + done)

    def copy(self, place: "StoredTensor", start: int, stop: int) -> None:
        """Copy bytes ``start`` to ``stop`` to another tensor."""
        content = memoryview(bytearray(stop - start))
        self.read(content, start)
        place.write(content, start)


def stored_tensors(folder: Path, stack: ExitStack) -> list[StoredTensor]:
    """Return the tensors of a model folder, in its order. Their files stay open until ``stack`` is closed."""
    found: list[StoredTensor] = []
    for path, names in tensors_by_file(folder).items():
        with open_safetensors(path):  # checks the header
            file = stack.enter_context(path.open("rb", buffering=0))
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        for name in names:
            if name not in header:
                raise UserError(f"{path}: tensor {name} is missing; fetch the model again")
            dtype, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
            if dtype.startswith("F") and dtype not in _FLOATS:
                raise UserError(f"{path}: tensor {name} has type {dtype}, which cannot be updated")
            shape = tuple(header[name]["shape"])
            found.append(StoredTensor(name, dtype, shape, file.fileno(), 8 + size + begin, end - begin))
    return found


def written_bytes(tensor: StoredTensor, dtype: Dtype | None) -> int:
    """Return the size in bytes of a tensor written as ``dtype``; ``None`` keeps its own type."""
    if not tensor.is_float:
        return tensor.nbytes
    return tensor.count * (4 if _written_as(tensor, dtype) == "F32" else 2)


def create_files(
    folder: Path, tensors: Sequence[StoredTensor], dtype: Dtype | None, files: ExitStack
) -> dict[str, StoredTensor]:
    """Create a model's weight files, complete except for the tensors' bytes. Returns the place of each tensor.

    A file's tensors are in the order of the safetensors library: by type, large elements first, then by name.
    Floating-point tensors get the type ``dtype``; ``None`` keeps each tensor's own.
    """
    sizes = {tensor.name: written_bytes(tensor, dtype) for tensor in tensors}
    types = {tensor.name: _written_as(tensor, dtype) for tensor in tensors}
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    shards = plan_shards(sizes)
    places: dict[str, StoredTensor] = {}
    for file, names in shards.items():
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in sorted(names, key=lambda name: (_rank(types[name]), name)):
            offsets = [end, end + sizes[name]]
            header[name] = {"dtype": types[name], "shape": list(shapes[name]), "data_offsets": offsets}
            end = offsets[1]
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        opened = files.enter_context((folder / file).open("wb", buffering=0))
        opened.write(struct.pack("<Q", len(text)) + text)
        opened.truncate(8 + len(text) + end)
        for name in names:
            begin = 8 + len(text) + header[name]["data_offsets"][0]
            places[name] = StoredTensor(name, types[name], shapes[name], opened.fileno(), begin, sizes[name])
    write_index(folder, shards, sizes)
    return places


def as_bytes(tensor: "torch.Tensor") -> memoryview:
    """Return the bytes of a contiguous tensor without copying them."""
    import torch

    return tensor.view(torch.uint8).numpy().data


def _written_as(tensor: StoredTensor, dtype: Dtype | None) -> str:
    """Return safetensors' name of the type in which a tensor is written."""
    if dtype is None or not tensor.is_float:
        return tensor.dtype
    return next(short for short, name in _FLOATS.items() if name == dtype)


def _rank(dtype: str) -> int:
    return _ORDER.index(dtype) if dtype in _ORDER else len(_ORDER)

"""State dict matching: finds each of a model's tensors in a state dict, and reports everything that does not match."""

import re
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.checkpoints.tensor_files import StoredTensor
from esplug.errors import UserError

if TYPE_CHECKING:
    import torch

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # as in vLLM
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_COMPUTED = re.compile(r"\brotary_emb\.")  # buffers that models compute from their configuration
_ROWS = 256  # to compare at a time
_MAX_NAMES = 3  # in an error message


def match_state_dict(
    tensors: Sequence[StoredTensor], state: Mapping[str, Any], base: Path, what: str, *, tied: bool
) -> "dict[str, torch.Tensor]":
    """Return the state dict's tensors under the names of the model's floating-point tensors.

    ``tied`` says whether the model ties its output embeddings to its input embeddings. Error messages begin with
    ``what`` and name the model's folder, ``base``.
    """
    match = _Match(tensors)
    match.add(state)
    match.check_heads()
    if tied:
        match.fill_tied()
    if faults := match.faults():
        raise UserError(f"{what}: does not fit the model {base}: {'; '.join(faults)}")
    return match.found


class _Match:
    """The tensors of a model that were found in a state dict, and what did not match."""

    def __init__(self, tensors: Sequence[StoredTensor]) -> None:
        self.found: dict[str, torch.Tensor] = {}  # floating-point tensors, by the model's names
        self._shapes = {tensor.name: tensor.shape for tensor in tensors if tensor.is_float}
        self._copied = {tensor.name for tensor in tensors if not tensor.is_float}
        self._heads: dict[str, torch.Tensor] = {}  # output embeddings that the model does not store
        self._named: set[str] = set()  # the model's tensors that the state dict has, usable or not
        self._unknown: list[str] = []
        self._misshapen: list[str] = []
        self._unusable: list[str] = []

    def add(self, state: Mapping[str, Any]) -> None:
        """Sort every entry of the state dict into one of the attributes."""
        import torch

        prefix = self._common_prefix(list(state))
        for given, value in state.items():
            name = given.removeprefix(prefix)
            parts = self._parts(name)
            self._named.update(parts)
            if not isinstance(value, torch.Tensor):
                self._unusable.append(f"{given} is {type(value).__name__}, not a tensor")
            elif not parts and (name in self._copied or _COMPUTED.search(name)):
                continue
            elif not value.is_floating_point():
                self._unusable.append(f"{given} is {str(value.dtype).removeprefix('torch.')}, not floating-point")
            elif value.layout != torch.strided or value.device.type != "cpu":
                self._unusable.append(f"{given} is sparse or without values")
            elif parts:
                self._add_parts(given, parts, value.detach())
            elif name.endswith(_HEAD):
                self._heads[given] = value.detach()
            else:
                self._unknown.append(given)

    def check_heads(self) -> None:
        """Check that output embeddings that the model does not store are equal to its input embeddings."""
        embedding = self._embedding()
        for given, head in self._heads.items():
            if embedding is None:
                self._unknown.append(given)
                continue
            head = _unpadded(head, tuple(embedding.shape))
            if head.shape != embedding.shape or not _equal(head, embedding):
                self._unusable.append(f"{given} differs from {_EMBEDDING}, to which the model ties it")

    def fill_tied(self) -> None:
        """Use the input embeddings as output embeddings that the model stores and the state dict lacks."""
        embedding = self._embedding()
        for name, shape in self._shapes.items():
            lacking = name.endswith(_HEAD) and name not in self._named
            if lacking and embedding is not None and shape == tuple(embedding.shape):
                self.found[name] = embedding

    def faults(self) -> list[str]:
        """Describe everything that did not match, one phrase for each kind of fault."""
        missing = [name for name in self._shapes if name not in self.found and name not in self._named]
        return [
            f"{len(names)} {fault} ({_first_names(names, separator)})"
            for names, fault, separator in (
                (missing, "of the model's tensors are missing", ", "),
                (self._unknown, "are not in the model", ", "),
                (self._misshapen, "have another shape", "; "),
                (self._unusable, "cannot be used", "; "),
            )
            if names
        ]

    def _common_prefix(self, names: list[str]) -> str:
        """Return the prefix of all names that must be removed so that most of them are the model's."""
        common = commonprefix(names)  # noqa: RUF071 (names are not paths)
        prefixes = ["", *(common[: match.end()] for match in re.finditer(r"\.", common))]
        return max(prefixes, key=lambda prefix: sum(bool(self._parts(name.removeprefix(prefix))) for name in names))

    def _parts(self, name: str) -> list[str]:
        """Return the model's tensors that a tensor holds, in the order of its rows; an empty list if unknown."""
        if name in self._shapes:
            return [name]
        for fused, pieces in _FUSED.items():
            parts = [re.sub(rf"\b{fused}\b", piece, name) for piece in pieces]
            if parts[0] != name and all(part in self._shapes for part in parts):
                return parts
        return []

    def _add_parts(self, given: str, parts: list[str], tensor: "torch.Tensor") -> None:
        """Split a tensor into its parts and add them."""
        shapes = [self._shapes[part] for part in parts]
        expected = shapes[0] if len(parts) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if parts[0].endswith((_EMBEDDING, _HEAD)):
            tensor = _unpadded(tensor, expected)
        if tuple(tensor.shape) != expected:
            self._misshapen.append(f"{given} is {list(tensor.shape)}, in the model {list(expected)}")
            return
        row = 0
        for part, shape in zip(parts, shapes, strict=True):
            if part in self.found:
                self._unusable.append(f"{part} comes twice")
            self.found[part] = tensor if len(parts) == 1 else tensor[row : row + shape[0]]
            row += shape[0] if shape else 0

    def _embedding(self) -> "torch.Tensor | None":
        return next((tensor for name, tensor in self.found.items() if name.endswith(_EMBEDDING)), None)


def _unpadded(tensor: "torch.Tensor", shape: tuple[int, ...]) -> "torch.Tensor":
    """Cut off the rows with which vLLM pads a vocabulary."""
    return tensor[: shape[0]] if tensor.ndim and tuple(tensor.shape[1:]) == shape[1:] else tensor


def _equal(left: "torch.Tensor", right: "torch.Tensor") -> bool:
    import torch

    if left.data_ptr() == right.data_ptr() and left.dtype == right.dtype and left.stride() == right.stride():
        return True
    rows = range(0, len(left), _ROWS)
    return all(torch.equal(left[row : row + _ROWS].float(), right[row : row + _ROWS].float()) for row in rows)


def _first_names(names: Sequence[str], separator: str) -> str:
    more = f"{separator}and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return separator.join(names[:_MAX_NAMES]) + more

"""Models kept as a ``.pth``: the state dict of ES-at-Scale and others, joined with the model it belongs to.

Such a file is a pickle, which could run programs. It is read with ``weights_only=True``, which builds tensors alone
and refuses everything else, and is mapped into memory, so that only the piece being written takes any.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.checkpoints import tensor_files as stored
from esplug.checkpoints.folders import save_model
from esplug.checkpoints.tensor_files import StoredTensor, as_bytes
from esplug.errors import UserError
from esplug.utils.text import one_line

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # as vLLM does
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_COMPUTED = re.compile(r"\brotary_emb\.")  # buffers that models make from their configuration
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number with which torch's old format begins
_FORBIDDEN = re.compile(r"GLOBAL (\S+) was not|(?:whose module|Trying to load unsupported GLOBAL) (\S+)")
_ROWS = 256  # to compare at a time
_SHOWN = 3  # names in a message


def join(path: Path, base: Path, target: Path, what: str) -> Path:
    """Write the model whose weights are in a ``.pth`` and whose configuration and tokenizer are the base model's.

    Args:
        path: file of ``torch.save(model.state_dict())``. Its names are the checkpoint's, perhaps with a common
            prefix, or vLLM's fused ones; vocabularies may be padded, and tied output embeddings may be missing.
        base: folder of the model, which decides names, shapes and types.
        target: the folder to be made.
        what: begins messages, as ``--checkpoint weights.pth``.

    Raises:
        UserError: the file cannot be read, does not fit the model, or holds NaN or infinity; or the target cannot
            be written.
    """
    with ExitStack() as stack:
        tensors = stored.stored_tensors(base, stack)
        found = _Fit(tensors, _state_dict(path, what), tied=_ties(base)).result(what, base)

        def write(folder: Path) -> None:
            with ExitStack() as files:
                places = stored.create_files(folder, tensors, None, files)
                for tensor in tensors:
                    place = places[tensor.name]
                    if tensor.is_float:
                        _convert(found[tensor.name], place, what)
                    else:
                        for start in range(0, tensor.count, stored.STRETCH):
                            tensor.copy(place, start, min(tensor.count, start + stored.STRETCH))

        try:
            return save_model(write, base, target)
        except OSError as error:
            raise UserError(f"{what}: {target} cannot be written ({error.strerror or error})") from error


def _convert(source: "torch.Tensor", place: StoredTensor, what: str) -> None:
    """Write a tensor in the type of its place, by stretches."""
    flat = source.reshape(-1)
    for start in range(0, len(flat), stored.STRETCH):
        piece = flat[start : start + stored.STRETCH]
        rounded = place.empty(len(piece)).copy_(piece)
        if not rounded.isfinite().all():
            fault = f"values too large for {place.dtype}" if piece.float().isfinite().all() else "NaN or infinity"
            raise UserError(f"{what}: tensor {place.name} holds {fault}; give weights from before that happened")
        place.write(as_bytes(rounded), start * rounded.itemsize)


# --- reading ---------------------------------------------------------------------------------------------------


def _state_dict(path: Path, what: str) -> dict[str, Any]:
    """Return what a file holds by name; its tensors are mapped rather than read."""
    import torch

    _check_format(path, what)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        forbidden = _FORBIDDEN.search(str(error))
        held = f"it holds {(forbidden[1] or forbidden[2]).rstrip('.')}" if forbidden else "it is damaged, or holds more"
        raise UserError(
            f"{what}: refused, because {held} besides tensors, and reading such a file can run programs; save the "
            "state dict alone, with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # torch and the operating system raise many kinds for damaged files
        raise UserError(f"{what}: damaged, or not a file of torch.save ({one_line(error)})") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{what}: holds a {type(content).__name__} instead of a state dict")
    return {str(name): value for name, value in content.items()}


def _check_format(path: Path, what: str) -> None:
    """See that a file is what today's ``torch.save`` writes, without reading a pickle."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if not head:
            raise UserError(f"{what}: empty; copy the file again")
        if _LEGACY in head[:32] or head[257:262] == b"ustar":
            raise UserError(
                f"{what}: in torch's old format, which is not read; where you trust the file, convert it with "
                "torch.save(torch.load(path), path)"
            )
        if not head.startswith(b"PK\x03\x04"):
            raise UserError(
                f"{what}: not a file of torch.save; give a .pth, a Hugging Face folder or id, a seed log or a run"
            )
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, what)
    except OSError as error:
        raise UserError(f"{what}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{what}: cut short or damaged ({one_line(error)}); copy the file again") from error


def _check_archive(archive: zipfile.ZipFile, what: str) -> None:
    entries = archive.infolist()
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise UserError(
            f"{what}: a TorchScript program; save its state dict, with torch.save(model.state_dict(), path)"
        )
    if "data.pkl" not in names or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{what}: a zip file, but not one of torch.save; give the .pth itself")
    if any(entry.CRC for entry in entries):  # torch can leave them out
        damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


# --- fitting ---------------------------------------------------------------------------------------------------


class _Fit:
    """Finds each tensor of the model in a state dict, and everything that does not fit."""

    def __init__(self, tensors: Sequence[StoredTensor], state: Mapping[str, Any], *, tied: bool) -> None:
        import torch

        self._shapes = {tensor.name: tensor.shape for tensor in tensors if tensor.is_float}
        self._copied = {tensor.name for tensor in tensors if not tensor.is_float}
        self._found: dict[str, torch.Tensor] = {}
        self._unknown: list[str] = []
        self._misshapen: list[str] = []
        self._unusable: list[str] = []
        self._claimed: set[str] = set()
        prefix = self._prefix(list(state))
        heads: dict[str, torch.Tensor] = {}
        for given, value in state.items():
            name = given.removeprefix(prefix)
            parts = self._parts(name)
            if not isinstance(value, torch.Tensor):
                self._unusable.append(f"{given} is {type(value).__name__}, not a tensor")
            elif not parts and (name in self._copied or _COMPUTED.search(name)):
                continue
            elif not value.is_floating_point():
                self._unusable.append(f"{given} is {str(value.dtype).removeprefix('torch.')}, not floating-point")
            elif value.layout != torch.strided or value.device.type != "cpu":
                self._unusable.append(f"{given} is sparse or without values")
            elif parts:
                self._take(given, parts, value.detach())
            elif name.endswith(_HEAD):
                heads[given] = value.detach()
            else:
                self._unknown.append(given)
            self._claimed.update(parts)
        for given, head in heads.items():
            self._check_tied(given, head)
        if tied:
            self._fill_tied()

    def result(self, what: str, base: Path) -> "dict[str, torch.Tensor]":
        """Return the model's floating-point tensors, by name.

        Raises:
            UserError: not everything fits.
        """
        missing = [name for name in self._shapes if name not in self._found and name not in self._claimed]
        faults = [
            f"{len(names)} {fault} ({_some(names, separator)})"
            for names, fault, separator in (
                (missing, "of the model's tensors are missing", ", "),
                (self._unknown, "are not in the model", ", "),
                (self._misshapen, "have another shape", "; "),
                (self._unusable, "cannot be used", "; "),
            )
            if names
        ]
        if faults:
            raise UserError(f"{what}: does not fit the model {base}: {'; '.join(faults)}")
        return self._found

    def _prefix(self, names: list[str]) -> str:
        """Return what to take off all names: of their common beginnings that with which most fit the model."""
        common = commonprefix(names)  # noqa: RUF071 (names are no paths)
        prefixes = ["", *(common[: match.end()] for match in re.finditer(r"\.", common))]
        return max(prefixes, key=lambda prefix: sum(bool(self._parts(name.removeprefix(prefix))) for name in names))

    def _parts(self, name: str) -> list[str]:
        """Return which of the model's tensors, in order of rows, are in the one of this name; none if unknown."""
        if name in self._shapes:
            return [name]
        for fused, pieces in _FUSED.items():
            parts = [re.sub(rf"\b{fused}\b", piece, name) for piece in pieces]
            if parts[0] != name and all(part in self._shapes for part in parts):
                return parts
        return []

    def _take(self, given: str, parts: list[str], tensor: "torch.Tensor") -> None:
        shapes = [self._shapes[part] for part in parts]
        expected = shapes[0] if len(parts) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if parts[0].endswith((_EMBEDDING, _HEAD)):
            tensor = _unpadded(tensor, expected)
        if tuple(tensor.shape) != expected:
            self._misshapen.append(f"{given} is {list(tensor.shape)}, in the model {list(expected)}")
            return
        row = 0
        for part, shape in zip(parts, shapes, strict=True):
            if part in self._found:
                self._unusable.append(f"{part} comes twice")
            self._found[part] = tensor if len(parts) == 1 else tensor[row : row + shape[0]]
            row += shape[0] if shape else 0

    def _check_tied(self, given: str, head: "torch.Tensor") -> None:
        """Hold the output embeddings against the input's, where the model has these for both."""
        embedding = self._embedding()
        if embedding is None:
            self._unknown.append(given)
            return
        head = _unpadded(head, tuple(embedding.shape))
        if head.shape != embedding.shape or not _equal(head, embedding):
            self._unusable.append(f"{given} differs from {_EMBEDDING}, to which the model ties it")

    def _fill_tied(self) -> None:
        embedding = self._embedding()
        for name, shape in self._shapes.items():
            free = name.endswith(_HEAD) and name not in self._claimed
            if free and embedding is not None and shape == tuple(embedding.shape):
                self._found[name] = embedding

    def _embedding(self) -> "torch.Tensor | None":
        return next((tensor for name, tensor in self._found.items() if name.endswith(_EMBEDDING)), None)


def _unpadded(tensor: "torch.Tensor", shape: tuple[int, ...]) -> "torch.Tensor":
    """Cut off the rows with which vLLM fills up a vocabulary."""
    return tensor[: shape[0]] if tensor.ndim and tuple(tensor.shape[1:]) == shape[1:] else tensor


def _equal(left: "torch.Tensor", right: "torch.Tensor") -> bool:
    import torch

    if left.data_ptr() == right.data_ptr() and left.dtype == right.dtype and left.stride() == right.stride():
        return True
    rows = range(0, len(left), _ROWS)
    return all(torch.equal(left[row : row + _ROWS].float(), right[row : row + _ROWS].float()) for row in rows)


def _ties(base: Path) -> bool:
    """Whether a model says that its output embeddings are its input's."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        parts = [config, config.get("text_config") or {}]
        return any(part.get("tie_word_embeddings") is True for part in parts)
    except (OSError, ValueError, AttributeError):
        return False


def _some(names: Sequence[str], separator: str) -> str:
    more = f"{separator}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more

"""State dicts in a ``.pth`` file, as ES-at-Scale writes them: checks them and joins them with their model.

Such a file is a pickle, and unpickling it could run any program. It is read with ``weights_only=True``, which builds
only tensors and refuses everything else. The file is memory-mapped, so only the piece being written takes memory.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.checkpoints import tensor_files
from esplug.checkpoints.folders import save_model
from esplug.checkpoints.state_dict_match import match_state_dict
from esplug.checkpoints.tensor_files import StoredTensor, as_bytes
from esplug.errors import UserError
from esplug.utils.text import one_line

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number at the start of torch's old format
_FORBIDDEN = re.compile(r"GLOBAL (\S+) was not|(?:whose module|Trying to load unsupported GLOBAL) (\S+)")


def join(path: Path, base: Path, target: Path, what: str) -> Path:
    """Write a model folder with the weights of a ``.pth`` and the configuration and tokenizer of the base model.

    The base model's tensors give names, shapes and types. In the file, names may have a common prefix, or be fused as
    in vLLM; vocabularies may be padded; tied output embeddings may be missing. Error messages begin with ``what``.
    """
    with ExitStack() as stack:
        tensors = tensor_files.stored_tensors(base, stack)
        found = match_state_dict(tensors, _read_state_dict(path, what), base, what, tied=_ties_embeddings(base))

        def write(folder: Path) -> None:
            with ExitStack() as files:
                places = tensor_files.create_files(folder, tensors, None, files)
                for tensor in tensors:
                    place = places[tensor.name]
                    if tensor.is_float:
                        _write_tensor(found[tensor.name], place, what)
                    else:
                        for start in range(0, tensor.count, tensor_files.CHUNK):
                            tensor.copy(place, start, min(tensor.count, start + tensor_files.CHUNK))

        try:
            return save_model(write, base, target)
        except OSError as error:
            raise UserError(f"{what}: {target} cannot be written ({error.strerror or error})") from error


def _write_tensor(source: "torch.Tensor", place: StoredTensor, what: str) -> None:
    """Convert a tensor to the type of its place and write it, a chunk at a time."""
    flat = source.reshape(-1)
    for start in range(0, len(flat), tensor_files.CHUNK):
        piece = flat[start : start + tensor_files.CHUNK]
        rounded = place.empty(len(piece)).copy_(piece)
        if not rounded.isfinite().all():
            fault = f"values too large for {place.dtype}" if piece.float().isfinite().all() else "NaN or infinity"
            raise UserError(f"{what}: tensor {place.name} holds {fault}; use weights from before that happened")
        place.write(as_bytes(rounded), start * rounded.itemsize)


def _read_state_dict(path: Path, what: str) -> dict[str, Any]:
    """Return the file's state dict, unwrapped. Its tensors are memory-mapped."""
    import torch

    _check_format(path, what)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        forbidden = _FORBIDDEN.search(str(error))
        extra = (forbidden[1] or forbidden[2]).rstrip(".") if forbidden else ""
        reason = f"it holds {extra} besides tensors" if extra else "it is damaged, or holds more than tensors"
        raise UserError(
            f"{what}: refused, because {reason}, and reading such a file can run programs; save only the state dict, "
            "with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # torch and the operating system raise many types for damaged files
        raise UserError(f"{what}: damaged, or not written by torch.save ({one_line(error)})") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{what}: holds a {type(content).__name__} instead of a state dict")
    return {str(name): value for name, value in content.items()}


def _check_format(path: Path, what: str) -> None:
    """Check that today's ``torch.save`` wrote a file, without unpickling anything."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if not head:
            raise UserError(f"{what}: empty; copy the file again")
        if _LEGACY in head[:32] or head[257:262] == b"ustar":
            raise UserError(
                f"{what}: in torch's old format, which is not supported; if you trust the file, convert it with "
                "torch.save(torch.load(path), path)"
            )
        if not head.startswith(b"PK\x03\x04"):
            raise UserError(
                f"{what}: not written by torch.save; give a .pth, a Hugging Face folder or id, a seed log or a run"
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
        raise UserError(f"{what}: a TorchScript program; save its state dict with torch.save(model.state_dict(), path)")
    if "data.pkl" not in names or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{what}: a zip file, but not written by torch.save; give the .pth itself")
    if any(entry.CRC for entry in entries):  # torch may omit the checksums
        damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _ties_embeddings(base: Path) -> bool:
    """Return whether a model's configuration ties its output embeddings to its input embeddings."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        parts = [config, config.get("text_config") or {}]
        return any(part.get("tie_word_embeddings") is True for part in parts)
    except (OSError, ValueError, AttributeError):
        return False

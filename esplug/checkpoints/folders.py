"""Model folders: writes them atomically, verifies them, and manages periodic checkpoints.

Each folder has a manifest, ``esplug.json``, with the size and hash of every file that affects the model's outputs. It
is canonical JSON (sorted keys, no blanks, a final newline): ``{"files":{"config.json":{"blake2b":"32 hex digits",
"bytes":...},...},"format":"esplug-model","hash":"32 hex digits","version":1}``. ``hash`` is the hash of the same line
without ``hash``. Hashes are 16-byte BLAKE2b. The model card and files that a user adds are not listed.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import MODEL_FILES
from esplug.errors import RunError, UserError
from esplug.utils import atomic_write
from esplug.utils.cores import usable_cores
from esplug.utils.text import one_line

MANIFEST = "esplug.json"
FORMAT, VERSION = "esplug-model", 1

#: Suffixes of weight files and their indices. They are not copied from the base model's folder.
_FORMATS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")
_WEIGHTS = (*_FORMATS, ".safetensors.index.json", ".bin.index.json")
_PERIODIC = re.compile(r"iteration-(\d+)")
_LEFTOVER = re.compile(r"\.(.+)\.(part|old)")


def save_model(save_weights: Callable[[Path], None], base: Path, target: Path) -> Path:
    """Write a model folder that ``transformers`` and vLLM can load, with its manifest.

    Args:
        save_weights: writes the safetensors files into the folder that it is called with.
        base: the base model's folder, whose configuration and tokenizer are copied.
        target: the folder to write. It appears complete or not at all; an older one stays until then.

    Raises:
        OSError: it cannot be written; ``filename`` is the target.
        RunError: the engine wrote its files on another machine.
    """
    temporary, outdated = _hidden(target, "part"), _hidden(target, "old")
    try:
        _clean_up(target)
        temporary.mkdir(parents=True)
        for file in sorted(base.iterdir()):
            if file.is_file() and not file.name.startswith(".") and not file.name.endswith((MANIFEST, *_WEIGHTS)):
                shutil.copyfile(file, temporary / file.name)
        save_weights(temporary)
        if not any(temporary.glob("*.safetensors")):
            raise RunError(
                f"{target.parent}: not visible from the engine's machine; use an output directory that all nodes share"
            )
        mode = (temporary / "config.json").stat().st_mode
        for weights in temporary.glob("*.safetensors"):  # safetensors makes them readable for the owner only
            weights.chmod(mode)
        (temporary / MANIFEST).write_bytes(_manifest(temporary))
        for path in (*temporary.iterdir(), temporary):
            atomic_write.sync(path)
        if target.exists():
            target.rename(outdated)
        temporary.rename(target)
        atomic_write.sync(target.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or one_line(error), str(target)) from error
        raise
    shutil.rmtree(outdated, ignore_errors=True)
    return target


def verify(folder: Path) -> None:
    """Check a model folder against its manifest. A folder without a manifest passes.

    Raises:
        UserError: a file is missing, cut short, changed or unreadable.
    """
    files = _read_manifest(folder / MANIFEST)
    for name, (size, _) in files.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            raise UserError(_damage(folder / name, f"missing, though {MANIFEST} lists it")) from None
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror or error})") from error
        if found != size:
            fault = "cut short" if found < size else "changed"
            raise UserError(_damage(folder / name, f"{fault}: it has {found} bytes instead of {size}"))
    for name, found_hash in _hashes(folder, files).items():
        if found_hash != files[name][1]:
            raise UserError(_damage(folder / name, "changed: its bytes are not those that were written"))


def weights_hash(folder: Path) -> int:
    """Return a 64-bit hash of a model's weight files: their names and bytes."""
    names = [path.name for path in folder.glob("*.safetensors")]
    return int.from_bytes(files_hash(folder, names, size=8), "little")


def files_hash(folder: Path, names: Iterable[str], size: int = 16) -> bytes:
    """Return a hash of ``size`` bytes of files: their names and bytes."""
    lines = "".join(f"{name} {value}\n" for name, value in sorted(_hashes(folder, names).items()))
    return blake2b(lines.encode(), digest_size=size).digest()


def periodic_name(iteration: int) -> str:
    """Return the folder name of the checkpoint after an iteration."""
    return f"iteration-{iteration}"


def newest_first(folder: Path) -> list[tuple[int, Path]]:
    """Return the iteration and folder of each complete periodic checkpoint, newest first, without verifying them."""
    found = [(_PERIODIC.fullmatch(path.name), path) for path in _entries(folder)]
    complete = [(int(name[1]), path) for name, path in found if name and (path / MANIFEST).is_file()]
    return sorted(complete, reverse=True)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` periodic checkpoints, and leftovers of killed saves, where possible."""
    for path in _entries(folder):
        if leftover := _LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                _clean_up(folder / leftover[1])
    for _, path in newest_first(folder)[keep:]:
        with suppress(OSError):  # renamed first, so that a half-removed folder is not a checkpoint
            shutil.rmtree(path.rename(_hidden(path, "part")), ignore_errors=True)


def set_aside(folder: Path, iteration: int) -> None:
    """Rename periodic checkpoints of later iterations, which are not in the seed log."""
    for number, path in newest_first(folder):
        if number > iteration:
            rename_aside(path, "not-in-log")


def rename_aside(path: Path, why: str) -> Path:
    """Rename a checkpoint so that it is no longer used. Returns its new path."""
    aside = path.with_name(f"{path.name}-{why}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def _clean_up(target: Path) -> None:
    """Remove the leftovers of a killed save of ``target``, and restore the folder that it was replacing."""
    outdated = _hidden(target, "old")
    if outdated.exists() and not target.exists():
        outdated.rename(target)
    for leftover in (_hidden(target, "part"), outdated):
        shutil.rmtree(leftover, ignore_errors=True)


def _manifest(folder: Path) -> bytes:
    names = [path.name for path in folder.iterdir() if path.name.endswith(MODEL_FILES)]
    hashes = _hashes(folder, names)
    files = {name: {"bytes": (folder / name).stat().st_size, "blake2b": hashes[name]} for name in names}
    return _canonical({"format": FORMAT, "version": VERSION, "files": files})


def _canonical(content: dict[str, Any]) -> bytes:
    def line(content: dict[str, Any]) -> bytes:
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    return line(content | {"hash": blake2b(line(content), digest_size=16).hexdigest()})


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return the size and hash of each file by name; an empty dictionary if there is no manifest."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        content = json.loads(text)
        if content["format"] == FORMAT and content["version"] > VERSION:
            raise UserError(f"{path}: written by a newer esplug, in version {content['version']}; upgrade esplug")
        content.pop("hash")
        if text != _canonical(content):
            raise ValueError("changed")
        return {Path(name).name: (file["bytes"], file["blake2b"]) for name, file in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(_damage(path, "changed or cut short")) from error


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash files in parallel."""

    def hashed(name: str) -> tuple[str, str]:
        try:
            with (folder / name).open("rb", buffering=0) as file:
                return name, file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror or error})") from error

    with ThreadPoolExecutor(len(usable_cores())) as pool:
        return dict(pool.map(hashed, names))


def _damage(path: Path, fault: str) -> str:
    return f"{path}: {fault}; copy the folder again, or remove its {MANIFEST} if the change is intended"

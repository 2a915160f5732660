"""The base model: finds its folder, here or on the Hugging Face Hub, its size and its maximum prompt length."""

import json
import re
from math import prod
from pathlib import Path

from esplug.checkpoints.model_files import DESCRIPTIONS, ModelFiles
from esplug.checkpoints.model_kind import TRAINING, ModelKind, ModelUse, check_model
from esplug.errors import UserError
from esplug.utils.hub import hub_files, hub_revision
from esplug.utils.local_paths import exists, looks_local
from esplug.utils.text import one_line

_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(/|$)")

#: Suffixes of a model's files: weights, configuration, tokenizer, and the code of a model that brings its own.
MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken", ".py")


def model_folder(name: str, flag: str = "--model-name", use: ModelUse = TRAINING) -> Path:
    """Return the folder of a model, downloading it if ``name`` is a Hub id, with optional ``@revision``.

    Raises:
        UserError: there is no such model, or it is of a kind that is of no ``use``.
    """
    folder = local_folder(name, flag) or _download(name, flag, use)
    check_model(ModelFiles.of(folder, name), use, f"{flag} {name}")
    return folder.resolve()


def kind_of_folder(folder: Path, use: ModelUse) -> ModelKind:
    """Return the kind of a model folder; raises like :func:`model_folder`."""
    return check_model(ModelFiles.of(folder, str(folder)), use, str(folder))


def local_folder(name: str, flag: str) -> Path | None:
    """Return the folder of this name; ``None`` if it does not exist."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a name too long
        raise UserError(f"{flag} {name}: no such folder ({error})") from error


def may_be_on_hub(name: str) -> bool:
    """Return whether a name can be a Hugging Face id, ``owner/name`` or an old one without owner."""
    return not looks_local(name)


def is_in_local_folder(name: str) -> bool:
    """Return whether a name such as ``models/tiny`` starts with a folder of this machine, so it is hardly a Hub id."""
    return "/" in name and exists(str(Path(name).parent))


def no_such_folder(name: str, flag: str) -> str:
    """Describe a missing folder, with its absolute path."""
    path = str(Path(name).expanduser().absolute())
    return f"{flag} {name}: no such folder" + (f" ({path})" if path != name else "")


def _download(name: str, flag: str, use: ModelUse) -> Path:
    if not may_be_on_hub(name):
        raise UserError(no_such_folder(name, flag))
    repo, _, revision = name.partition("@")
    try:
        commit = hub_revision(repo, revision or None, "model")
    except LookupError as error:
        if is_in_local_folder(name):
            raise UserError(no_such_folder(name, flag)) from error
        raise UserError(f"{flag} {name}: no such folder, and not available from the Hub: {error}") from error
    try:  # without the Hub, an earlier download is used
        if commit:
            check_on_hub(name, commit, use, flag)
        return _snapshot(repo, commit or revision, cached_only=commit is None)
    except UserError:
        raise
    except Exception as error:
        if commit is None and is_in_local_folder(name):
            raise UserError(no_such_folder(name, flag)) from error
        if commit is None:
            raise UserError(
                f"{flag} {name}: no such folder, and the Hugging Face Hub is out of reach; on a machine that reaches "
                f"it, run `hf download {repo} --local-dir DIR`, then give DIR"
            ) from error
        raise UserError(f"{flag} {name}: not readable from the Hub ({one_line(error)})") from error


def check_on_hub(name: str, commit: str, use: ModelUse, flag: str) -> ModelKind | None:
    """Check the kind of a model on the Hub from its small files, before its weights are downloaded.

    Returns ``None`` if the Hub does not list its files.
    """
    from huggingface_hub import snapshot_download

    repo = name.partition("@")[0]
    names = hub_files(repo, commit)
    if not names:
        return None
    folder = snapshot_download(repo, revision=commit, allow_patterns=list(DESCRIPTIONS), local_files_only=False)
    return check_model(ModelFiles.of(Path(folder), name, names), use, f"{flag} {name}")


def _snapshot(repo: str, revision: str, *, cached_only: bool) -> Path:
    """Return the folder of a revision in the Hub's cache, downloading it unless ``cached_only``."""
    from huggingface_hub import snapshot_download

    files = [f"*{suffix}" for suffix in MODEL_FILES]
    return Path(snapshot_download(repo, revision=revision or None, allow_patterns=files, local_files_only=cached_only))


def local_model_folder(name: str, flag: str = "--model-name") -> Path | None:
    """Return the folder of a model on this machine, at a path or in the Hub's cache; ``None`` if there is none."""
    if folder := local_folder(name, flag):
        return folder.resolve()
    if not may_be_on_hub(name):
        return None
    repo, _, revision = name.partition("@")
    try:
        cached = _snapshot(repo, revision, cached_only=True)
    except Exception:  # not in the cache, or not a valid id
        return None
    complete = (cached / "config.json").is_file() and any(cached.glob("*.safetensors"))
    return cached if complete else None


def revision_of(folder: Path) -> str | None:
    """Return the commit of a folder in the Hub's cache; ``None`` for any other folder."""
    snapshot = _SNAPSHOT.search(folder.as_posix())
    return snapshot[1] if snapshot else None


def weights_size(folder: Path) -> tuple[int, int]:
    """Return the size of the weight files in bytes and the number of their elements, from the files' headers."""
    from safetensors import SafetensorError, safe_open

    stored = elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    elements += prod(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: damaged or not a safetensors file ({error})") from error
        stored += file.stat().st_size
    return stored, elements


def longest_prompt(folder: Path, max_model_len: int | None, max_tokens: int) -> int:
    """Return the maximum number of prompt tokens that leaves ``max_tokens`` for the answer."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: damaged ({error})") from error
    inner = config.get("text_config")  # describes the language model of a multimodal one
    described = inner if isinstance(inner, dict) else config
    own = described.get("max_position_embeddings") or 2**31
    if max_model_len and max_model_len > own:
        raise UserError(f"--max-model-len {max_model_len}: the model's own length is {own}")
    limit = max_model_len or own
    if max_tokens >= limit:
        raise UserError(f"--max-tokens {max_tokens}: the model's length is {limit}, which leaves no token for a prompt")
    return int(limit - max_tokens)

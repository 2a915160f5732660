"""The base model: finding its folder, its size, and turning prompts into its tokens."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from esplug.errors import UserError
from esplug.utils.hub import hub_revision
from esplug.utils.text import one_line

_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(/|$)")

#: How the files end that make a model: weights, configuration, tokenizer.
MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken")


def model_folder(name: str, flag: str = "--model-name") -> Path:
    """Return the folder of a model, fetching it from the Hub if it is an id, with optional ``@revision``.

    Raises:
        UserError: there is no such model, or it holds no safetensors weights.
    """
    folder = local_folder(name, flag) or _fetch(name, flag)
    if not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.pth"))
        instead = f"; name the file itself, {files[0]}" if files else ""
        raise UserError(f"{flag} {name}: not a Hugging Face model folder (no config.json){instead}")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{flag} {name}: no *.safetensors weights there; convert the model with save_pretrained")
    return folder.resolve()


def local_folder(name: str, flag: str) -> Path | None:
    """Return the folder of this name; ``None`` if there is none, so that it may be a Hub id.

    Raises:
        UserError: it can be no name of a folder.
    """
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a name too long
        raise UserError(f"{flag} {name}: no such folder ({error})") from error


def may_be_on_hub(name: str) -> bool:
    """Say whether a name can be a Hugging Face id, ``owner/name`` or an old one without owner, rather than a path."""
    return not name.startswith((".", "/", "~")) and name.count("/") <= 1


def _fetch(name: str, flag: str) -> Path:
    if not may_be_on_hub(name):
        raise UserError(f"{flag} {name}: no such folder")
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        commit = hub_revision(repo, revision or None, "model")
    except LookupError as error:
        raise UserError(f"{flag} {name}: no such folder, and not to be had from the Hub: {error}") from error
    try:  # out of reach, an earlier download will do
        kept_only = commit is None
        wanted = commit or revision or None
        patterns = [f"*{suffix}" for suffix in MODEL_FILES]
        return Path(snapshot_download(repo, revision=wanted, allow_patterns=patterns, local_files_only=kept_only))
    except Exception as error:
        if commit is None:
            raise UserError(
                f"{flag} {name}: no such folder, and the Hugging Face Hub is out of reach; where it is in reach, run "
                f"`hf download {repo} --local-dir DIR`, then give DIR"
            ) from error
        raise UserError(f"{flag} {name}: not readable from the Hub ({one_line(error)})") from error


def kept_folder(name: str, flag: str = "--model-name") -> Path | None:
    """Return the folder of a model that is on this machine, here or in the Hub's cache; ``None`` if it is not.

    Raises:
        UserError: it can be no name of a folder.
    """
    if folder := local_folder(name, flag):
        return folder.resolve()
    if not may_be_on_hub(name):
        return None
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    patterns = [f"*{suffix}" for suffix in MODEL_FILES]
    try:
        cached = snapshot_download(repo, revision=revision or None, allow_patterns=patterns, local_files_only=True)
    except Exception:  # not there, or no such name
        return None
    whole = (Path(cached) / "config.json").is_file() and any(Path(cached).glob("*.safetensors"))
    return Path(cached) if whole else None


def revision_of(folder: Path) -> str | None:
    """Return the commit that a folder of the Hub's cache holds; ``None`` for any other folder."""
    snapshot = _SNAPSHOT.search(folder.as_posix())
    return snapshot[1] if snapshot else None


def weights_size(folder: Path) -> tuple[int, int]:
    """Return the bytes of the weights as stored, and the number of their elements, from file headers alone.

    Raises:
        UserError: a file is not in safetensors format.
    """
    from safetensors import SafetensorError, safe_open

    stored = elements = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    elements += _product(tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: damaged or not a safetensors file ({error})") from error
        stored += file.stat().st_size
    return stored, elements


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def longest_prompt(folder: Path, max_model_len: int | None, max_tokens: int) -> int:
    """Return how many tokens a prompt may have, so that an answer of ``max_tokens`` fits behind it.

    Raises:
        UserError: none, or the model does not say.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: damaged ({error})") from error
    own = config.get("max_position_embeddings") or 2**31
    if max_model_len and max_model_len > own:
        raise UserError(f"--max-model-len {max_model_len}: the model's own length is {own}")
    limit = max_model_len or own
    if max_tokens >= limit:
        raise UserError(f"--max-tokens {max_tokens}: the model's length is {limit}, which leaves no token for a prompt")
    return int(limit - max_tokens)

"""Upload of a model to the Hugging Face Hub: the files that make up a model, and nothing private.

Only files with the names of a model's files are uploaded: no seed logs, no records of a run, no other files that lie in
the folder. Local paths in ``config.json`` and its like become names.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from esplug.checkpoints.model_card import public_name
from esplug.errors import UserError
from esplug.utils.text import brief, cause, one_line

CARD = "README.md"
_MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("*tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.model", "*.tiktoken", "*.jinja", "chat_template.json", "*processor_config.json", "*.py"),
    *("LICENSE*", "LICENCE*", "NOTICE*"),
)
_SETTINGS = ("config.json", "*_config.json")  # JSON files that may hold paths
_PATH_KEY = re.compile(r"(path|dir|file|folder)$")
_LONGEST_TEXT = 2**26  # bytes of a file that is searched for the token


@dataclass(frozen=True, slots=True)
class UploadFile:
    """A file to upload: its name in the repository, and its content or where that is."""

    name: str
    content: Path | bytes

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def upload_files(folder: Path, card: str | None = None) -> tuple[list[UploadFile], list[str]]:
    """Choose the files of a model folder to upload.

    Args:
        folder: the model folder.
        card: text of the model card; ``None`` for the folder's own.

    Returns:
        The files, and the names of those that stay.
    """
    chosen, left = [], []
    for path in sorted(folder.iterdir()):
        if path.name == CARD:
            chosen.append(UploadFile(CARD, card.encode() if card is not None else path))
        elif path.is_file() and any(fnmatch(path.name, pattern) for pattern in _MODEL_FILES):
            private = any(fnmatch(path.name, pattern) for pattern in _SETTINGS)
            chosen.append(UploadFile(path.name, _public_json(path) if private else path))
        else:
            left.append(path.name)
    if card is not None and all(file.name != CARD for file in chosen):
        chosen.append(UploadFile(CARD, card.encode()))
    return chosen, left


def check_repo(repo: str, flag: str) -> None:
    """Check the form of a repository's name, without a network. Raises ``UserError``, which begins with ``flag``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        fault = one_line(error).partition(":")[0].rstrip(".")
        raise UserError(
            f"{flag} {brief(repr(repo))}: not the name of a repository ({fault}); give OWNER/NAME"
        ) from error


def check_access(repo: str, flag: str) -> str:
    """Check that there is a token, and that the Hub accepts it. Returns the token.

    Raises:
        UserError: there is none, the Hub refuses it, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    _quiet()
    if not (token := get_token()):
        raise UserError(f"{flag} {repo}: no Hugging Face token; run `hf auth login`, or set HF_TOKEN")
    try:
        HfApi().whoami(token)
    except Exception as error:  # its type depends on the versions of the library and of its HTTP client
        raise _not_uploaded(repo, flag, error) from error
    return token


def upload(
    files: Sequence[UploadFile], repo: str, flag: str, *, message: str, private: bool = False, branch: str | None = None
) -> str:
    """Upload files in one commit, to a repository that is created if needed. Returns its address.

    Args:
        files: what to upload.
        repo: name of the repository, ``owner/name``.
        flag: with which the user gave it, for error messages.
        message: of the commit.
        private: create a private repository. An existing one must be private.
        branch: created if needed; ``None`` for the main one.

    Raises:
        UserError: there is no token, the Hub refuses, or it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    token = check_access(repo, flag)
    for file in files:
        _check_secret(file, token)
    try:
        api = HfApi()
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        public = private and not api.model_info(name).private
        if not public:
            if branch:
                api.create_branch(name, branch=branch, exist_ok=True)
            operations = [CommitOperationAdd(file.name, file.content) for file in files]
            api.create_commit(name, operations, commit_message=message, revision=branch)
    except Exception as error:
        raise _not_uploaded(repo, flag, error) from error
    if public:
        raise UserError(
            f"{flag} {repo}: exists and is public, so nothing was uploaded; leave out --private, or make it private"
        )
    return f"{api.endpoint}/{name}" + (f"/tree/{branch}" if branch else "")


def _quiet() -> None:
    """Hide the library's retries, so that an error is one line, and its bars where nobody sees them."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from esplug.utils.console import get_console

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not get_console().is_terminal:
        disable_progress_bars()


def _not_uploaded(repo: str, flag: str, error: Exception) -> UserError:
    remedy = "check the network and the token (`hf auth login`), then try again"
    return UserError(f"{flag} {repo}: not uploaded ({type(error).__name__}: {one_line(error)}); {remedy}")


def _check_secret(file: UploadFile, token: str) -> None:
    """Check that a file does not hold the user's token."""
    if file.name.endswith(".safetensors") or file.nbytes > _LONGEST_TEXT:
        return
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    if token.encode() in content:
        raise UserError(f"{file.name} holds your Hugging Face token, so nothing was uploaded; remove it from the file")


def _public_json(path: Path) -> Path | bytes:
    """Return a JSON file's content with names in place of local paths; the file itself if it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({cause(error)}); fetch the model again") from error
    public = _without_paths(content)
    return path if public == content else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item, key) for item in value]
    return public_name(value) if isinstance(value, str) and _PATH_KEY.search(key) else value

"""Hugging Face Hub: resolves a repository's revision to a commit."""

import logging
from typing import Literal

from esplug.utils.text import one_line

TIMEOUT = 5.0  # seconds to wait for the Hub


def hub_revision(name: str, revision: str | None, kind: Literal["dataset", "model"] = "dataset") -> str | None:
    """Ask the Hub once for the commit of a branch or tag, or the newest; ``None`` if the Hub cannot be reached.

    Raise ``LookupError`` if the Hub has no such repository or revision, or refuses access.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # hide its retries, so that an error is one line
    ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
    try:
        return ask(name, revision=revision, timeout=TIMEOUT).sha
    except (HfHubHTTPError, HFValidationError) as error:
        raise LookupError(one_line(error)) from error
    except Exception:  # its type depends on the versions of the library and of its HTTP client
        return None


def hub_files(name: str, revision: str) -> list[str]:
    """Return the names of a model repository's files; ``[]`` if the Hub does not tell."""
    from huggingface_hub import HfApi

    try:
        return HfApi().list_repo_files(name, revision=revision)
    except Exception:  # its type depends on the versions of the library and of its HTTP client
        return []

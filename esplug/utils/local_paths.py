"""Local paths: tells existing files and folders from other names, and makes their names absolute."""

import os
from pathlib import Path


def exists(name: str) -> bool:
    """Return whether a file or folder has this name; ``~`` is the home folder."""
    try:
        return bool(name) and Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # no such user's home; a name too long
        return False


def absolute(name: str) -> str:
    """Return the absolute path of an existing file or folder, and any other name unchanged. Links are not followed."""
    return os.path.abspath(Path(name).expanduser()) if exists(name) else name


def looks_local(name: str) -> bool:
    """Return whether a name can only be a path, not a Hugging Face id (``owner/name``, or ``name`` alone)."""
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name

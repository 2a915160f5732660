"""Sources of rows: reads every split of a saved data set, a file, a local copy of a Hub repository, or a Hub id."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esplug.data.hub_datasets import Rows, check_files, load_from_hub, load_local_copy
from esplug.data.row_files import SUFFIXES, read_rows
from esplug.errors import UserError
from esplug.utils.local_paths import exists, looks_local
from esplug.utils.text import cause

_MAX_DEPTH = 3  # of folders to search for saved data sets; links could form a loop
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split."""

    origin: str  # flag and source, for error messages: --eval-dataset suite/amc
    names: tuple[str, ...]  # of everything that contains the split, and its own: ("suite", "amc", "test")
    rows: Rows


def list_sources(value: str) -> list[str]:
    """Split a comma-separated list of sources. An existing path with a comma in it is one source."""
    return [value] if exists(value) else [source.strip() for source in value.split(",")]


def source_names(source: str) -> tuple[str, ...]:
    """Return the names of a source, outermost first: the parts of its path, or a Hub id's owner and name."""
    if exists(source):
        return Path(os.path.abspath(Path(source).expanduser())).parts
    return tuple(source.split("/"))


def name_splits(splits: Sequence[SplitRows]) -> dict[str, SplitRows]:
    """Return the splits by name: their own, or ``<data set>/<split>`` and so on outwards if others share it."""
    named: dict[str, SplitRows] = {}
    for split in splits:
        others = [other.names for other in splits if other is not split]
        depths = range(1, len(split.names) + 1)
        unique = (depth for depth in depths if all(names[-depth:] != split.names[-depth:] for names in others))
        name = "/".join(split.names[-next(unique, len(split.names)) :])
        if name in named:
            raise UserError(f"{split.origin}: the split {split.names[-1]!r} is given twice; name each data set once")
        named[name] = split
    return named


def read(source: str, flag: str) -> list[SplitRows]:
    """Read every split of one source.

    Args:
        source: a saved DatasetDict or Dataset, or a folder of them; a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet``
            file; a local copy of a Hub repository, with optional ``:config``; or a Hub id with optional ``:config``
            and ``@revision``.
        flag: the flag that names the source, for error messages: ``--eval-dataset``.

    Raises:
        UserError: the source does not exist or is malformed, or the Hub is out of reach.
    """
    origin = f"{flag} {source}"
    if not source:  # Path would take it for the working directory
        raise UserError(f"{flag}: an empty name is no such file or folder; check for an extra comma")
    try:
        path = Path(source).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # unknown user's home; name too long
        raise UserError(f"{origin}: no such file or folder ({getattr(error, 'strerror', None) or error})") from error
    if path.is_dir():
        return _read_folder(path, flag, origin)
    if path.is_file():
        parent = Path(os.path.abspath(path)).parent
        return [SplitRows(origin, (*parent.parts, path.stem), read_rows(path, origin))]
    if path.exists():  # reading it might never end
        raise UserError(f"{origin}: a pipe, socket or device; give a file or folder")
    folder, _, config = source.rpartition(":")
    if folder and config and Path(folder).expanduser().is_dir():
        path = Path(folder).expanduser()
        return _split_rows(origin, str(path), load_local_copy(path, config, origin))
    parts = _HUB_ID.fullmatch(source)
    if path.suffix in SUFFIXES or looks_local(source.partition(":")[0]) or not parts:
        raise UserError(f"{origin}: no such file or folder")
    return _split_rows(origin, source, load_from_hub(parts["name"], parts["config"], parts["revision"], origin))


def _split_rows(origin: str, source: str, splits: Mapping[str, Rows]) -> list[SplitRows]:
    return [SplitRows(origin, (*source_names(source), name), rows) for name, rows in splits.items()]


def _read_folder(path: Path, flag: str, origin: str) -> list[SplitRows]:
    try:
        saved = list(_find_saved(path, _MAX_DEPTH))
    except OSError as error:
        raise UserError(f"{origin}: cannot be read: {error}") from error
    if saved:
        origins = {folder: origin if folder == path else f"{flag} {folder}" for folder in saved}
        return [split for folder in saved for split in _read_saved(folder, origins[folder])]
    if any((path / mark).exists() for mark in ("README.md", ".gitattributes", ".cache/huggingface")):
        return _split_rows(origin, str(path), load_local_copy(path, None, origin))
    raise UserError(
        f"{origin}: not a saved DatasetDict, a folder of them (no dataset_dict.json), or a copy of a Hub repository "
        "(no README.md); save one with save_to_disk"
    )


def _find_saved(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders that ``save_to_disk`` wrote, sorted by name."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _find_saved(inner, depth - 1)


def _read_saved(path: Path, origin: str) -> list[SplitRows]:
    import datasets

    try:
        check_files(path)
        loaded = datasets.load_from_disk(str(path))
        for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
            part.data.validate(full=True)  # reading a damaged table may crash the process
    except IndexError as error:  # raised for a saved data set without rows
        raise UserError(f"{origin}: the data set has no rows") from error
    except Exception as error:
        raise UserError(f"{origin}: cannot be read [{cause(error)}]") from error
    if not isinstance(loaded, dict):
        return [SplitRows(origin, source_names(str(path)), loaded)]
    if not loaded:
        raise UserError(f"{origin}: the data set has no splits")
    return _split_rows(origin, str(path), loaded)

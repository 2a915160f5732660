"""Reading rows from wherever the user keeps them: saved data sets, files, the Hub and local copies of it."""

import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from esplug.errors import UserError
from esplug.hookspecs import Row
from esplug.utils.hub import hub_revision
from esplug.utils.text import cause, one_line

Rows = Sequence[Row]

#: How deep in a folder saved data sets are looked for; a bound, since links may make circles.
_DEEPEST = 3
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, and where they come from.

    Attributes:
        origin: flag and place, for errors: ``--eval-dataset suite/amc``.
        names: the split's own name, after the names of all that holds it: ``("suite", "amc", "test")``.
        rows: one mapping from column to value each.
    """

    origin: str
    names: tuple[str, ...]
    rows: Rows


def sources(path: str) -> list[str]:
    """Take a comma-separated list apart; a path with a comma in it that exists is one source."""
    return [path] if _exists(path) else [source.strip() for source in path.split(",")]


def place(source: str) -> tuple[str, ...]:
    """Name a source by its parts, the last the most telling: the folders of a path, or a Hub id's owner and name."""
    if _exists(source):
        return Path(os.path.abspath(Path(source).expanduser())).parts
    return tuple(source.split("/"))


def named(parts: Sequence[SplitRows]) -> dict[str, SplitRows]:
    """Give each split its own name, or ``<data set>/<split>`` (and so on outwards) where others have that too.

    Raises:
        UserError: one split is there twice.
    """
    out: dict[str, SplitRows] = {}
    for part in parts:
        others = [other.names for other in parts if other is not part]
        depths = range(1, len(part.names) + 1)
        alone = (depth for depth in depths if all(names[-depth:] != part.names[-depth:] for names in others))
        name = "/".join(part.names[-next(alone, len(part.names)) :])
        if name in out:
            raise UserError(f"{part.origin}: the split {part.names[-1]!r} is there twice; name each data set once")
        out[name] = part
    return out


def read(source: str, flag: str) -> list[SplitRows]:
    """Read every split of one source.

    Args:
        source: a saved DatasetDict or Dataset, or a folder that holds such; a ``.json``, ``.jsonl``, ``.csv`` or
            ``.parquet`` file; a local copy of a Hub repository, with optional ``:config``; or a Hub id with optional
            ``:config`` and ``@revision``.
        flag: begins errors: ``--eval-dataset``.

    Raises:
        UserError: nothing is there, it is malformed, or the Hub is out of reach.
    """
    origin = f"{flag} {source}"
    if not source:  # which Path would take for the working directory
        raise UserError(f"{flag}: an empty name is no such file or folder; look for a comma too many")
    try:
        where = Path(source).expanduser()
        where.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a name too long
        raise UserError(f"{origin}: no such file or folder ({getattr(error, 'strerror', None) or error})") from error
    if where.is_dir():
        return _read_folder(where, flag, origin)
    if where.is_file():
        parent = Path(os.path.abspath(where)).parent
        return [SplitRows(origin, (*parent.parts, where.stem), _read_file(where, origin))]
    if where.exists():  # reading it might never end
        raise UserError(f"{origin}: a pipe, socket or device; give a file or folder")
    folder, _, config = source.rpartition(":")
    if folder and config and Path(folder).expanduser().is_dir():
        return _read_repository(Path(folder).expanduser(), config, origin)
    parts = _HUB_ID.fullmatch(source)
    if where.suffix in _READERS or source.startswith((".", "/", "~")) or not parts:
        raise UserError(f"{origin}: no such file or folder")
    splits = load_from_hub(parts["name"], parts["config"], parts["revision"], origin)
    return [SplitRows(origin, (*place(source), name), rows) for name, rows in splits.items()]


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


# --- folders -----------------------------------------------------------------------------------------------


def _read_folder(where: Path, flag: str, origin: str) -> list[SplitRows]:
    try:
        found = list(_saved(where, _DEEPEST))
    except OSError as error:
        raise UserError(f"{origin}: cannot be read: {error}") from error
    if found:
        return [
            part for folder in found for part in _read_saved(folder, origin if folder == where else f"{flag} {folder}")
        ]
    if any((where / mark).exists() for mark in ("README.md", ".gitattributes", ".cache/huggingface")):
        return _read_repository(where, None, origin)
    raise UserError(
        f"{origin}: not a saved DatasetDict, nor a folder of such (no dataset_dict.json), nor a copy of a Hub "
        "repository (no README.md); save one with save_to_disk"
    )


def _saved(folder: Path, depth: int) -> Iterator[Path]:
    """Find the folders that ``save_to_disk`` made, in the order of their names."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        yield folder
    elif depth:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _saved(inner, depth - 1)


def _check_files(folder: Path) -> None:
    """Refuse what is neither file nor folder: reading it might never end."""
    for path in folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe, socket or device")


def _read_saved(where: Path, origin: str) -> list[SplitRows]:
    import datasets

    try:
        _check_files(where)
        loaded = datasets.load_from_disk(str(where))
        for part in loaded.values() if isinstance(loaded, dict) else [loaded]:
            part.data.validate(full=True)  # reading a damaged table may crash
    except IndexError as error:  # what a saved data set without rows gives
        raise UserError(f"{origin}: the data set has no rows") from error
    except Exception as error:
        raise UserError(f"{origin}: cannot be read [{cause(error)}]") from error
    if not isinstance(loaded, dict):
        return [SplitRows(origin, place(str(where)), loaded)]
    if not loaded:
        raise UserError(f"{origin}: the data set has no splits")
    return [SplitRows(origin, (*place(str(where)), name), rows) for name, rows in loaded.items()]


def _read_repository(where: Path, config: str | None, origin: str) -> list[SplitRows]:
    splits = load_repository(where, config, origin)
    return [SplitRows(origin, (*place(str(where)), name), rows) for name, rows in splits.items()]


def load_repository(where: Path, config: str | None, origin: str) -> dict[str, Rows]:
    """Read a folder that ``hf download --repo-type dataset`` made: split name to rows.

    Raises:
        UserError: it holds no data that the ``datasets`` library understands, or no such configuration.
    """
    import datasets

    try:
        _check_files(where)
        with _quiet():
            return dict(datasets.load_dataset(str(where), config))
    except Exception as error:
        if "onfig name is missing" in str(error):
            names = ", ".join(datasets.get_dataset_config_names(str(where)))
            raise UserError(f"{origin}: add :CONFIG, one of {names}") from error
        raise UserError(f"{origin}: cannot be read: {one_line(error.__cause__ or error)}") from error


# --- files -------------------------------------------------------------------------------------------------


def _text(where: Path) -> str:
    try:
        return where.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        if error.object.startswith(b"\x1f\x8b"):
            raise ValueError("compressed with gzip; unpack it") from error
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8"
        ) from error


def _read_json(where: Path) -> list[Any]:
    try:
        rows = json.loads(_text(where))
    except json.JSONDecodeError as error:
        hint = "; rows of one line each belong in a .jsonl file" if error.msg == "Extra data" else ""
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}{hint}") from error
    if not isinstance(rows, list):
        raise ValueError("expected a list of rows")
    return rows


def _read_jsonl(where: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_text(where).split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets
            raise ValueError(f"line {number}: {one_line(error)}") from error
    return rows


def _read_csv(where: Path) -> list[Any]:
    import pyarrow
    import pyarrow.csv

    _text(where)  # says where it is no text
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)  # prompts have them
    # One thread counts rows, for the error; one block takes rows of any length.
    options = pyarrow.csv.ReadOptions(use_threads=False, block_size=min(where.stat().st_size + 1, 2**31 - 1))
    with pyarrow.csv.open_csv(where, options, parse) as file:
        names = _distinct(file.schema.names)
    as_text = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()), null_values=[])
    table = pyarrow.csv.read_csv(where, options, parse, as_text)
    columns = {name: _typed(table[name].to_pylist()) for name in names}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _distinct(names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"column {twice!r} is there twice")
    return names


def _typed(texts: list[str]) -> Sequence[Any]:
    """Read a column as numbers only where that loses nothing: ``007`` and thirty digits stay text."""
    for kind in (int, float):
        try:
            values = [kind(text) for text in texts]
        except ValueError:
            continue
        if list(map(str, values)) == texts and all(map(math.isfinite, values)):
            return values
    return texts


def _read_parquet(where: Path) -> list[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(where)
    table.validate(full=True)  # reading a damaged table may crash
    _distinct(table.column_names)
    return cast(list[Any], table.to_pylist())


_READERS = {".json": _read_json, ".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}


def _read_file(where: Path, origin: str) -> list[Row]:
    reader = _READERS.get(where.suffix)
    if reader is None:
        raise UserError(f"{origin}: unknown kind of file; use {', '.join(_READERS)} or a saved DatasetDict")
    try:
        rows = reader(where)
    except Exception as error:
        raise UserError(f"{origin}: cannot be read: {one_line(error)}") from error
    if bad := next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None):
        raise UserError(f"{origin}: row {bad} is not an object with columns")
    return rows


# --- the Hub -----------------------------------------------------------------------------------------------


def load_from_hub(name: str, config: str | None, revision: str | None, origin: str) -> dict[str, Rows]:
    """Load a data set by its Hub id, from what an earlier load left where the Hub is out of reach.

    Raises:
        UserError: the Hub has no such data set, or is out of reach.
    """
    import datasets

    try:
        reached = hub_revision(name, revision)
    except LookupError as error:
        raise UserError(f"{origin}: no such file or folder, and not to be had from the Hub: {error}") from error
    if reached is None and revision is not None:
        raise UserError(out_of_reach(name, origin))  # the library's cache does not tell revisions apart
    if reached is not None:
        return load_commit(name, config, reached, origin)
    try:
        with _offline(), _quiet():
            return dict(datasets.load_dataset(name, config))
    except Exception as error:
        raise UserError(out_of_reach(name, origin)) from error


def load_commit(name: str, config: str | None, commit: str, origin: str) -> dict[str, Rows]:
    """Load a commit of a data set from the Hub, which is known to be in reach.

    Raises:
        UserError: it cannot be read, or has several configurations and none is named.
    """
    import datasets

    try:
        return dict(datasets.load_dataset(name, config, revision=commit))
    except Exception as error:
        if "onfig name is missing" in str(error):
            names = ", ".join(datasets.get_dataset_config_names(name, revision=commit))
            raise UserError(f"{origin}: add :CONFIG, one of {names}") from error
        raise UserError(f"{origin}: not readable from the Hub: {one_line(error)}") from error


def out_of_reach(name: str, origin: str) -> str:
    """Say in one line that the Hub cannot be reached, and what to do."""
    return (
        f"{origin}: no such file or folder, and the Hugging Face Hub is out of reach; where it is in reach, run "
        f"`hf download --repo-type dataset {name} --local-dir DIR`, then give DIR"
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the ``datasets`` library from trying the Hub again and again: it looks into its cache alone."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings and progress bars from standing above our one line."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()

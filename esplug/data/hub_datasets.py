"""Data sets of the Hugging Face Hub: loads them from the Hub, its cache, or a local copy of a repository."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from esplug.errors import UserError
from esplug.hookspecs import Row
from esplug.utils.hub import hub_revision
from esplug.utils.text import one_line

Rows: TypeAlias = Sequence[Row]


def load_local_copy(path: Path, config: str | None, origin: str) -> dict[str, Rows]:
    """Load a folder that ``hf download --repo-type dataset`` wrote. Returns the rows of each split."""
    import datasets

    try:
        check_files(path)
        with _quiet():
            return dict(datasets.load_dataset(str(path), config))
    except Exception as error:
        _check_config(error, origin, str(path), None)
        raise UserError(f"{origin}: cannot be read: {one_line(error.__cause__ or error)}") from error


def load_from_hub(name: str, config: str | None, revision: str | None, origin: str) -> dict[str, Rows]:
    """Load a data set by its Hub id. If the Hub is out of reach, use the ``datasets`` library's cache."""
    import datasets

    origin_and_fault = f"{origin}: no such file or folder, and"
    commit = find_commit(name, revision, origin_and_fault)
    if commit is not None:
        return load_commit(name, config, commit, origin)
    unreachable = f"{origin_and_fault} {out_of_reach(name, 'DIR', 'DIR')}"
    if revision is not None:
        raise UserError(unreachable)  # the library's cache does not tell revisions apart
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True  # use only the cache, without retrying the Hub
    try:
        with _quiet():
            return dict(datasets.load_dataset(name, config))
    except Exception as error:
        raise UserError(unreachable) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def load_commit(name: str, config: str | None, commit: str, origin: str) -> dict[str, Rows]:
    """Load a commit of a data set from the Hub, which must be in reach."""
    import datasets

    try:
        return dict(datasets.load_dataset(name, config, revision=commit))
    except Exception as error:
        _check_config(error, origin, name, commit)
        raise UserError(f"{origin}: not readable from the Hub: {one_line(error)}") from error


def find_commit(name: str, revision: str | None, message: str) -> str | None:
    """Return the commit of a revision; ``None`` if the Hub is out of reach. Errors begin with ``message``."""
    try:
        return hub_revision(name, revision)
    except LookupError as error:
        raise UserError(f"{message} not available from the Hub: {error}") from error


def out_of_reach(name: str, folder: str, argument: str) -> str:
    """Return the error text for a Hub that is out of reach, with the command that copies the data set."""
    return (
        "the Hugging Face Hub is out of reach; on a machine that reaches it, run `hf download --repo-type dataset "
        f"{name} --local-dir {folder}`, then give {argument}"
    )


def check_files(folder: Path) -> None:
    """Raise ``ValueError`` if a folder holds a pipe, socket or device: reading it might never end."""
    for path in folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe, socket or device")


def _check_config(error: Exception, origin: str, name: str, revision: str | None) -> None:
    """Raise ``UserError`` if the data set could not be loaded because it has several configurations."""
    import datasets

    if "onfig name is missing" in str(error):
        names = ", ".join(datasets.get_dataset_config_names(name, revision=revision))
        raise UserError(f"{origin}: add :CONFIG, one of {names}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' warnings and progress bars, which would precede esplug's one-line error."""
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

"""Models of a chat: the trained one, and the one that it was trained from."""

import json
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from esplug.checkpoints.folders import verify
from esplug.checkpoints.model_kind import ModelUse
from esplug.checkpoints.replayed_model import check_base
from esplug.checkpoints.safetensors_shards import read_shapes
from esplug.checkpoints.seed_log import read
from esplug.checkpoints.seed_log_format import FILE_NAME
from esplug.checkpoints.starting_model import base_of, find_model, kind_of, log_file, replayed
from esplug.errors import UserError
from esplug.runs.directory import RunDirectory
from esplug.runs.summary import is_run

#: Keys of ``config.json`` that do not change how a model computes.
_INERT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True, slots=True)
class ChatModels:
    """Model folders to talk with, and their names for the reader.

    Attributes:
        base: the model that ``trained`` was trained from; ``None`` to talk with ``trained`` alone.
    """

    trained: Path
    base: Path | None
    name: str
    base_name: str = ""


def find_models(
    name: str, base: str | None, *, command: str, alone: bool, scratch: Path, stack: ExitStack, use: ModelUse
) -> ChatModels:
    """Find the models of a chat. A run without a saved model is replayed.

    Args:
        name: a run's directory, a seed log, a model's folder or Hub id.
        base: model, run or seed log of the base; ``None`` for the one in the seed log, if there is a log.
        command: what the user runs, such as ``esplug chat``, for errors.
        alone: talk with the trained model only.
        scratch: parent of temporary folders.
        stack: removes the temporary folders when it is closed.
        use: what the chat does with the models.

    Raises:
        UserError: a model is missing, damaged, of a kind that cannot answer, or of another kind than its base.
        RunError: the replayed weights do not have the log's checksum.
    """
    match kind_of(name):
        case "log":
            models = _of_log(log_file(Path(name)), name, base, alone, scratch, stack)
        case "model":
            models = _of_model(name, base, command, alone, scratch, stack, use)
        case _:
            raise UserError(f"{name}: a file of weights; give the folder of a model, a run or a seed log")
    if models.base:
        _check_alike(models.trained, models.base, base)
    return models


def run_of(name: str) -> Path | None:
    """Return the directory of the run that a name stands for: itself, its seed log, or one of its saved models."""
    with suppress(OSError, RuntimeError, ValueError):  # no such user's home; a name too long
        path = Path(name).expanduser()
        if path.name == FILE_NAME:
            path = path.parent
        elif (folder := path.absolute().parent).name == "checkpoints":
            path = folder.parent
        return path if is_run(path) else None
    return None


def scratch_parent(run: Path | None) -> Path:
    """Return a parent for temporary folders: that of the run, which has room for models, if it can be written."""
    folder = run.absolute().parent if run else Path(gettempdir())
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(gettempdir())


def _of_log(log: Path, name: str, base: str | None, alone: bool, scratch: Path, stack: ExitStack) -> ChatModels:
    recorded = read(log)
    count = len(recorded.steps)
    saved = RunDirectory(log.parent).saved_model(count) if log.name == FILE_NAME else None
    started_from = None
    if saved is None or not alone:
        started_from = base_of(log, base, scratch, stack)
    if saved:
        trained = saved
        verify(saved)
        if started_from:
            check_base(recorded.header, started_from)
    else:
        assert started_from
        trained = replayed(log, started_from, scratch, stack)
    title = f"{name}, {count} iteration{'s' * (count != 1)}"
    return ChatModels(trained, None if alone else started_from, title, base or recorded.header.base.name)


def _of_model(
    name: str, base: str | None, command: str, alone: bool, scratch: Path, stack: ExitStack, use: ModelUse
) -> ChatModels:
    run = run_of(name)
    if run and run == Path(name).expanduser():
        raise UserError(f"{name}: no {FILE_NAME} there, so nothing was trained; give a training run, or a model")
    trained = find_model(name, command, scratch, stack, use)
    if alone:
        return ChatModels(trained, None, name)
    if base:
        return ChatModels(trained, find_model(base, "--base", scratch, stack, use), name, base)
    log = RunDirectory(run).seed_log if run else None
    if log is None or not log.is_file():
        return ChatModels(trained, None, name)
    header, started_from = read(log, 0).header, base_of(log, None, scratch, stack)
    check_base(header, started_from)
    return ChatModels(trained, started_from, name, header.base.name)


def _check_alike(trained: Path, base: Path, given: str | None) -> None:
    """Check that one engine can answer with both models, by writing the weights of one into the other."""
    one, two = (_effective(json.loads((folder / "config.json").read_text("utf-8"))) for folder in (trained, base))
    differing = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    fault = f"{differing[0]} differs in config.json" if differing else ""
    if not fault and read_shapes(trained) != read_shapes(base):
        fault = "its tensors differ"
    if fault:
        raise UserError(
            f"--base {given or base}: not the base of {trained} ({fault}); leave it out, or compare the two with "
            "`esplug eval --compare`"
        )


def _effective(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _effective(value) for key, value in config.items() if key not in _INERT}
    return config

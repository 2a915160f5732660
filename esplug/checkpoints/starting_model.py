"""The starting model of a run: finds it, or makes a temporary folder of it.

A folder or Hugging Face id is used in place. A seed log, or the directory of a run, is replayed. An ES-at-Scale
``.pth`` is joined with its model.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from esplug.checkpoints.base_model import local_folder, model_folder
from esplug.checkpoints.folders import verify
from esplug.checkpoints.model_kind import TRAINING, ModelUse
from esplug.checkpoints.replayed_model import write_model
from esplug.checkpoints.seed_log import read
from esplug.checkpoints.seed_log_format import FILE_NAME, LINE_START
from esplug.checkpoints.seed_log_records import Header
from esplug.errors import UserError
from esplug.utils.console import say
from esplug.utils.file_lock import is_abandoned, locked

_PREFIX = ".starting-"
_REPLAY = ModelUse(perturbs=True, trusts_code=True)  # replaying runs no code
_WEIGHT_FILES = {
    ".safetensors": "give its folder, with config.json and the tokenizer",
    ".gguf": "GGUF weights are quantised and cannot be perturbed: use the folder of the unquantised model",
}
_REMEDY = "give its new path with the --base of `esplug export`, `push` or `chat`"


def starting_model(
    model_name: str,
    checkpoint: str | None,
    revision: str | None,
    scratch: Path,
    stack: ExitStack,
    use: ModelUse = TRAINING,
) -> Path:
    """Return a folder with the starting weights that vLLM can load.

    Args:
        model_name: value of ``--model-name``. A ``.pth`` checkpoint uses its configuration and tokenizer.
        checkpoint: value of ``--checkpoint``; ``None`` for the weights of ``model_name``.
        revision: commit of a model on the Hub; ``None`` for the revision in its name.
        scratch: parent of temporary folders, on a path that all engines share.
        stack: removes the temporary folders when it is closed.
        use: what the run does with the model.
    """
    if checkpoint is None:
        return _find(model_name, "--model-name", None, revision, use, scratch, stack)
    return _find(checkpoint, "--checkpoint", model_name, revision, use, scratch, stack)


def base_of(log: Path, given: str | None, scratch: Path, stack: ExitStack) -> Path:
    """Return a folder with the weights that the run of a seed log started from.

    ``given`` is the value of ``--base``; ``scratch`` and ``stack`` are as for :func:`starting_model`.
    """
    if given is not None:
        return _find(given, "--base", _model_name(read(log, 0).header), None, _REPLAY, scratch, stack)
    logs = _lineage(log)
    header = read(logs[-1], 0).header
    name, revision = header.base.name, header.base.revision
    try:
        folder = _find(name, "the log's base model", _model_name(header), revision, _REPLAY, scratch, stack)
    except UserError as error:
        raise UserError(f"{error}; {_REMEDY}") from error
    for earlier in reversed(logs[1:]):
        say(f"replaying {earlier}")
        folder = replayed(earlier, folder, scratch, stack)
    return folder


def find_model(name: str, flag: str, scratch: Path, stack: ExitStack, use: ModelUse) -> Path:
    """Return the folder of a model, run or seed log. Error messages begin with ``flag`` and the name."""
    return _find(name, flag, None, None, use, scratch, stack)


def kind_of(name: str) -> Literal["model", "log", "pth"]:
    """Tell a folder or Hub id (``model``) from a seed log or run directory (``log``) and a ``.pth`` file."""
    try:
        path = Path(name).expanduser()
        if path.name == FILE_NAME or (path / FILE_NAME).is_file():
            return "log"
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(len(LINE_START))
            return "log" if start == LINE_START else "pth"
    except (OSError, RuntimeError, ValueError):  # no such user's home; a name too long
        pass
    return "pth" if name.endswith(".pth") else "model"


def _find(
    name: str,
    flag: str,
    model_name: str | None,
    revision: str | None,
    use: ModelUse,
    scratch: Path,
    stack: ExitStack,
) -> Path:
    """Return the folder of a model of any kind; arguments as for :func:`starting_model`."""
    kind, path = kind_of(name), Path(name)
    if kind == "log":
        log = log_file(path)
        try:
            base = base_of(log, None, scratch, stack)
            say(f"replaying {log}")
            return replayed(log, base, scratch, stack)
        except UserError as error:
            raise UserError(f"{flag} {name}: {error}") from error
    if kind == "pth":
        if instead := _WEIGHT_FILES.get(path.suffix.lower()):
            raise UserError(f"{flag} {name}: one file of weights; {instead}")
        if model_name is None or model_name == name:
            raise UserError(f"{flag} {name}: only weights; give it as --checkpoint, and its model as --model-name")
        from esplug.checkpoints.pth import join

        base = _find(model_name, "--model-name", None, revision, use, scratch, stack)
        say(f"reading {name}")
        return join(path.expanduser(), base, _temporary(scratch, stack) / "model", f"{flag} {name}")
    folder = local_folder(name, flag)
    if folder:
        verify(folder)
    elif revision:
        name = f"{name.partition('@')[0]}@{revision}"
    return model_folder(name, flag, use)


def replayed(log: Path, base: Path, scratch: Path, stack: ExitStack) -> Path:
    """Return a temporary folder with the model of a log, replayed from the folder ``base``.

    Raises:
        UserError: the log is damaged, or ``base`` is not its base model.
        RunError: the replayed weights do not have the log's checksum.
    """
    exported = write_model(read(log), log, base, _temporary(scratch, stack) / "model")
    if exported.torn:
        say("skipped its last record, which a crash has torn")
    return exported.folder


def _lineage(log: Path) -> list[Path]:
    """Return a log, the log that its run started from, and so on."""
    logs = [log]
    while kind_of(name := read(logs[-1], 0).header.base.name) == "log":
        earlier = log_file(Path(name))
        if earlier.resolve() in (each.resolve() for each in logs):
            raise UserError(f"{log}: the runs that it started from lead back to {name}; {_REMEDY}")
        try:
            read(earlier, 0)
        except UserError as error:
            raise UserError(f"the log's base model {error}; {_REMEDY}") from error
        logs.append(earlier)
    return logs


def _model_name(header: Header) -> str | None:
    """Return the ``model_name`` of the log's run, with which a ``.pth`` was joined."""
    name = header.settings.get("model_name")
    return name if isinstance(name, str) else None


def log_file(path: Path) -> Path:
    """Return the seed log that a run's directory, or the path of a seed log, stands for."""
    path = path.expanduser()
    return path / FILE_NAME if path.is_dir() else path


def _temporary(scratch: Path, stack: ExitStack) -> Path:
    """Create a temporary folder, and remove those of processes that were killed."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for leftover in filter(is_abandoned, scratch.glob(f"{_PREFIX}*")):
            shutil.rmtree(leftover, ignore_errors=True)
        made = TemporaryDirectory(dir=scratch, prefix=_PREFIX, ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(made))
        stack.enter_context(locked(folder))
    except OSError as error:
        raise UserError(f"{scratch}: cannot be written ({error.strerror or error})") from error
    return folder

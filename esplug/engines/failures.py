"""Failure reports: what happened to an engine, the end of its log, and which weights differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esplug.engines.liveness import EngineSlot
from esplug.errors import RunError, UserError
from esplug.utils.json_files import write_json

_LOG_TAIL = 15  # lines


def raised(error: Exception) -> bool:
    """Whether the engine raised an exception, rather than died."""
    import ray

    return isinstance(error, ray.exceptions.RayTaskError)


def log_path(folder: Path, slot: EngineSlot) -> Path:
    """Return the path of an engine's log in a run's directory."""
    return folder / "logs" / f"engine-{slot.index}.log"


def describe(slot: EngineSlot, error: Exception) -> str:
    """Say what happened to an engine, as a predicate: ``died``, ``made no progress for 600 s (--engine-timeout)``."""
    import ray

    if slot.silent_for:
        return f"made no progress for {slot.silent_for:g} s (--engine-timeout)"
    if raised(error):
        cause = getattr(error, "cause", None) or error
        lines = [line for line in str(cause).splitlines() if line.strip()]
        return f"failed ({type(cause).__name__}: {lines[-1].strip() if lines else 'no message'})"
    return "ran out of memory and was killed" if isinstance(error, ray.exceptions.OutOfMemoryError) else "died"


def run_error(folder: Path, slot: EngineSlot, error: Exception, more: str = "") -> Exception:
    """Make the error that ends the run: the engine's own if that is the user's to fix, else one with the log's end."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return cause
    return RunError(f"engine {slot.index} {describe(slot, error)}{more}{_log_tail(log_path(folder, slot))}")


def _log_tail(path: Path) -> str:
    try:
        tail = path.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
    except OSError:
        return ""
    return f"\nlast lines of {path}:\n" + "\n".join(f"  {line}" for line in tail)


def write_mismatch(
    path: Path, iteration: int, when: str, logs: Sequence[Path], tensors: Sequence[dict[str, int]]
) -> None:
    """Write which tensors differ between engines to ``path``, as JSON.

    Args:
        path: of the file.
        iteration: after which weights differ.
        when: what the engines did last.
        logs: path of each engine's log.
        tensors: checksum of each tensor, for each engine.
    """
    differing = [name for name in tensors[0] if len({each[name] for each in tensors}) > 1]
    engines: dict[str, Any] = {
        str(index): {"log": str(log), "tensors": {name: f"{own[name]:016x}" for name in differing}}
        for index, (log, own) in enumerate(zip(logs, tensors, strict=True))
    }
    write_json(path, {"iteration": iteration, "after": when, "engines": engines}, indent=2)

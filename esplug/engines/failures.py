"""Failure reports: what happened to an engine, the end of its log, and which weights differ."""

from collections.abc import Sequence
from typing import Any

from esplug.engines.liveness import EngineSlot
from esplug.errors import RunError, UserError

_LOG_TAIL = 15  # lines


def raised(error: Exception) -> bool:
    """Whether the engine raised an exception, rather than died."""
    import ray

    return isinstance(error, ray.exceptions.RayTaskError)


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


def run_error(slot: EngineSlot, error: Exception, more: str = "") -> Exception:
    """Make the error that ends the run: the engine's own if that is the user's to fix, else one with the log's end."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return cause
    message = f"engine {slot.index} {describe(slot, error)}{more}"
    try:
        tail = slot.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
    except OSError:
        return RunError(message)
    return RunError("\n  ".join([f"{message}\nlast lines of {slot.log}:", *tail]))


def mismatch(slots: Sequence[EngineSlot], tensors: Sequence[dict[str, int]]) -> dict[str, Any]:
    """Return each engine's log and checksums of the tensors that differ, from the checksums of all its tensors."""
    differing = [name for name in tensors[0] if len({each[name] for each in tensors}) > 1]
    return {
        str(slot.index): {"log": str(slot.log), "tensors": {name: f"{own[name]:016x}" for name in differing}}
        for slot, own in zip(slots, tensors, strict=True)
    }

"""Failure reports: what happened to an engine, the end of its log, and which weights differ."""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from esplug.engines.engine_errors import EngineError, plain
from esplug.engines.liveness import EngineSlot
from esplug.engines.nodes import log_tail
from esplug.errors import RunError, UserError
from esplug.utils.text import cause, printable

_LOG_TAIL = 15  # lines

#: Failures of a device, a network or memory, which a new engine may not have.
_OF_THE_MACHINE = re.compile(r"CUDA|HIP|NCCL|cuBLAS|cuDNN|memory|address already in use|timed out|connection", re.I)


def raised(error: Exception) -> bool:
    """Whether the engine raised an exception, rather than died."""
    import ray

    return isinstance(error, ray.exceptions.RayTaskError)


def deterministic(error: Exception) -> bool:
    """Whether the engine raised an exception that does not come from the machine, so that every engine would."""
    return raised(error) and isinstance(own := _own(error), EngineError) and not _OF_THE_MACHINE.search(str(own))


def is_users(error: Exception) -> bool:
    """Whether the engine raised an error that the user has to fix."""
    return isinstance(getattr(error, "cause", None), UserError)


def _own(error: Exception) -> Exception:
    """Return the engine's own exception from the error that Ray wraps around it."""
    return plain(getattr(error, "cause", None) or error)


def describe(slot: EngineSlot, error: Exception) -> str:
    """Say what happened to an engine, as a predicate: ``died``, ``made no progress for 600 s (--engine-timeout)``."""
    import ray

    if slot.silent_for:
        return f"made no progress for {slot.silent_for:g} s (--engine-timeout)"
    if raised(error):
        own = _own(error)
        return f"failed ({own if isinstance(own, EngineError) else cause(own)})"
    return "ran out of memory and was killed" if isinstance(error, ray.exceptions.OutOfMemoryError) else "died"


def run_error(slot: EngineSlot, error: Exception, more: str = "") -> Exception:
    """Make the error that ends the run: the engine's own if that is the user's to fix, else one with the log's end."""
    if is_users(error):
        return _own(error)
    message = f"engine {slot.index} {describe(slot, error)}{more}"
    tail = _log_tail(slot)
    if not tail:
        return RunError(message)
    return RunError("\n  ".join([f"{message}\nlast lines of {slot.log}:", *map(printable, tail)]))


def _log_tail(slot: EngineSlot) -> list[str]:
    """Return the last lines of an engine's log, which is on its node; nothing if there are none."""
    import ray

    with suppress(OSError):
        return slot.log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
    if slot.node and ray.is_initialized() and slot.node != ray.get_runtime_context().get_node_id():
        return log_tail(slot.node, slot.log, _LOG_TAIL)
    return []


def mismatch(slots: Sequence[EngineSlot], tensors: Sequence[dict[str, int]]) -> dict[str, Any]:
    """Return each engine's log and checksums of the tensors that differ, from the checksums of all its tensors."""
    differing = [name for name in tensors[0] if len({each[name] for each in tensors}) > 1]
    return {
        str(slot.index): {"log": str(slot.log), "tensors": {name: f"{own[name]:016x}" for name in differing}}
        for slot, own in zip(slots, tensors, strict=True)
    }

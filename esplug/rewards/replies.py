"""Replies of a grader process: a reward, messages or a failure as a line of JSON, without objects of user code."""

import errno
import json
import os
import resource
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from esplug.hookspecs import Message, Reward, StopRun

LABEL_LENGTH = 200
MAX_REWARD = 1e100  # keeps the variance of many rewards finite
TRACEBACK_LENGTH = 4000
MAX_FRAMES = 50  # endless recursion leaves very many
MAX_REPLY_CHARACTERS = 80_000  # of the messages of one turn; as JSON, a character has up to 12 bytes

OUT_OF_MEMORY, PROCESS_DIED = "error:MemoryError", "error:ProcessDied"


class NonFinite(ValueError):  # noqa: N818 - users see it as the label "error:NonFinite"
    """A reward or metric that is infinite or not a number."""


def as_reward(result: Any) -> Reward:
    """Convert a reward function's result to a :class:`Reward`.

    Args:
        result: a number (including ``bool``, NumPy scalars and 0-d tensors), ``(label, number)`` or a :class:`Reward`.
            A label is text, or a mapping: ``"label"`` is the label, other numbers are metrics, the rest is ignored.

    Raises:
        TypeError: the result is none of these.
        NonFinite: the reward or a metric is NaN, infinite, or larger than 1e100.
    """
    match result:
        case Reward():
            reward = result
        case (Mapping() as label, value):
            metrics = {name: x for name, x in label.items() if name != "label" and _is_number(x)}
            reward = Reward(value, label.get("label", ""), None, metrics)
        case (str() as label, value):
            reward = Reward(value, label)
        case _:
            reward = Reward(result)
    return Reward(
        _number(reward.value, "reward"),
        _clean(str(reward.label))[:LABEL_LENGTH],
        None if reward.correct is None else bool(reward.correct),
        {_clean(str(name)): _number(x, f"metric {name!r}") for name, x in reward.metrics.items()},
    )


def as_messages(result: Any) -> list[Message] | None:
    """Check what the hook ``turn`` returned: messages, the text of one by the user, or ``None``.

    Raises:
        TypeError: the result is none of these.
        ValueError: a message is the model's, or there are no messages, or too many characters.
    """
    if result is None:
        return None
    if isinstance(result, str):
        result = [{"role": "user", "content": result}]
    if not isinstance(result, Sequence) or not all(_is_message(each) for each in result):
        raise TypeError('turn must return None, text, or a list of {"role": text, "content": text}')
    if not result:
        raise ValueError("turn returned no messages; return None to end the conversation")
    if any(each["role"] == "assistant" for each in result):
        raise ValueError("turn returned a message of the role 'assistant', which is the model's")
    if (size := sum(len(each["role"]) + len(each["content"]) for each in result)) > MAX_REPLY_CHARACTERS:
        raise ValueError(f"turn returned {size:,} characters, more than {MAX_REPLY_CHARACTERS:,}")
    return [{"role": _clean(each["role"]), "content": _clean(each["content"])} for each in result]


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)  # NumPy's str has __float__, too


def _number(value: Any, what: str) -> float:
    if not _is_number(value):
        raise TypeError(f"the {what} must be a number, not {type(value).__name__}")
    number = float(value)
    if not abs(number) <= MAX_REWARD:  # also false for NaN
        raise NonFinite(f"the {what} must be finite, and at most {MAX_REWARD:g}, not {number}")
    return number


def _clean(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded in log files."""
    return text.encode(errors="replace").decode()


def failure_line(error: BaseException) -> bytes:
    """Return the reply to a request for which user code raised ``error``."""
    if stop := _stop_in(error):
        return reply_line(Reward(0.0), _clean(str(stop).strip() or "it raised StopRun"), stops=True)
    if isinstance(error, MemoryError):
        lift_memory_limit()
    trace = _clean("".join(traceback.format_exception(error, limit=-MAX_FRAMES)).strip())
    # PyTorch raises an error that is not a MemoryError.
    out_of_memory = isinstance(error, MemoryError) or os.strerror(errno.ENOMEM) in trace
    if len(trace) > TRACEBACK_LENGTH:
        trace = f"{trace[: TRACEBACK_LENGTH // 2]}\n[...]\n{trace[-TRACEBACK_LENGTH // 2 :]}"
    label = OUT_OF_MEMORY if out_of_memory else f"error:{type(error).__name__}"[:LABEL_LENGTH]
    return reply_line(Reward(0.0, label), trace)


def _stop_in(error: BaseException) -> StopRun | None:
    """Return the exception, or one of its group, that stops the run: ``asyncio.TaskGroup`` raises groups."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_stop_in, error.exceptions)), None)
    return error if isinstance(error, StopRun) else None


def outcome_line(result: Any, *, is_turn: bool) -> bytes:
    """Return the reply to a request for which user code returned ``result``. Raises if that is no valid result."""
    return reply_line(Reward(0.0), messages=as_messages(result)) if is_turn else reply_line(as_reward(result))


def reply_line(
    reward: Reward, trace: str | None = None, *, stops: bool = False, messages: list[Message] | None = None
) -> bytes:
    """Return a reply as a line of JSON."""
    line = [reward.value, reward.label, reward.correct, dict(reward.metrics), trace, stops, messages]
    return json.dumps(line).encode() + b"\n"


def lift_memory_limit() -> None:
    """Allow allocations again, to report the MemoryError; the driver then replaces this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))

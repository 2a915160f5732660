"""Engine errors: exceptions of vLLM and its libraries, as plain ones with their true message.

Many exceptions cannot be pickled, such as pydantic's, or can be unpickled only where their module is installed. Ray
replaces these by its own error, whose text is not the reason. The actor therefore raises none of them.
"""

import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar, cast

from esplug.errors import UserError
from esplug.utils.text import brief, printable

Method = TypeVar("Method", bound=Callable[..., Any])

_LONGEST = 400  # characters of a reason
_PREFIXES = ("Value error, ", "Assertion failed, ")  # that pydantic puts before the message of a validator
_CONFIGURATION = "create_engine_config"  # vLLM's function that checks the model against the settings


class EngineError(Exception):
    """An exception that an engine raised.

    Attributes:
        kind: name of the original exception's type.
        reason: its message in one printable line.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def with_plain_errors(method: Method) -> Method:
    """Make a method of an actor raise :func:`plain` exceptions. Their tracebacks go to the actor's log."""

    @functools.wraps(method)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except (Exception, SystemExit) as error:  # Ray would take SystemExit for the actor's intended end
            if not isinstance(error, UserError):
                traceback.print_exc()
                sys.stderr.flush()
            raise plain(error) from error

    return cast(Method, run)


def plain(error: BaseException) -> Exception:
    """Return an exception that any process can unpickle: a ``UserError``, ``OSError`` or :class:`EngineError`."""
    if isinstance(error, EngineError):
        return error
    if isinstance(error, UserError):
        return UserError(str(error))
    if isinstance(error, OSError) and isinstance(error.errno, int):
        name = None if error.filename is None else str(error.filename)
        return OSError(error.errno, str(error.strerror), name)
    return EngineError(type(error).__name__, reason(error))


def reason(error: BaseException) -> str:
    """Return an exception's message in one printable line, with its first cause's if that says something else."""
    first = error
    seen = {id(error)}
    while (deeper := _cause(first)) is not None and id(deeper) not in seen:
        first = deeper
        seen.add(id(first))
    own, root = _message(error), _message(first)
    if not own or root in own:
        return _one_line(own or root)
    return f"{_one_line(own)}; caused by {type(first).__name__}: {_one_line(root)}"


def of_configuration(error: BaseException) -> bool:
    """Whether vLLM raised an exception while it checked the model against the settings."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_code.co_name == _CONFIGURATION for frame in frames)


def _cause(error: BaseException) -> BaseException | None:
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__


def _message(error: BaseException) -> str:
    """Return the text of an exception; of a pydantic ``ValidationError``, its errors without links and inputs."""
    from pydantic import ValidationError

    try:
        if not isinstance(error, ValidationError):
            return str(error)
        details = error.errors(include_url=False, include_context=False, include_input=False)
    except Exception:  # its own __str__ may fail
        return ""
    messages = []
    for detail in details:
        text = functools.reduce(str.removeprefix, _PREFIXES, detail["msg"])
        place = ".".join(map(str, detail["loc"]))
        messages.append(f"{place}: {text}" if place else text)
    return "; ".join(messages)


def _one_line(text: str) -> str:
    return printable(brief(text, _LONGEST))

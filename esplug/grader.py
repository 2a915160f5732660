"""The grading process: ``python -m esplug.grader SOCKET DRIVER``, started by :mod:`esplug.rewards`.

It reads pickles from the socket whose descriptor is ``SOCKET`` and answers each with one line of JSON: first
how to run and what (``(PYTHONPATH, reward function)``), then answers (``(output, target)``) until the driver,
whose process id is ``DRIVER``, hangs up. Objects made by user code never travel back: a reply is numbers and
text, ``[value, label, correct, metrics, traceback]``, and its traceback is null unless grading failed.
"""

import ctypes
import functools
import inspect
import json
import math
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from esplug.hookspecs import Reward

LABEL_LENGTH = 200
TRACEBACK_LENGTH = 4000

_PR_SET_PDEATHSIG = 1


class NonFinite(ValueError):  # noqa: N818 - users read it as the label "error:NonFinite"
    """A reward or metric that is infinite or not a number."""


def as_reward(result: Any) -> Reward:
    """Check what a reward function returned and give it its one form.

    Args:
        result: a number (``bool`` counts as 0 or 1, a NumPy scalar or 0-d tensor as its value); or
            ``(label, number)``; or a :class:`Reward`. A label is text or a mapping, of which ``"label"`` is
            the label, other numbers are metrics and the rest is ignored.

    Raises:
        TypeError: it is none of these.
        NonFinite: the reward or a metric is infinite or not a number.
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


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str)  # NumPy's str has it too


def _number(value: Any, what: str) -> float:
    if not _is_number(value):
        raise TypeError(f"the {what} must be a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise NonFinite(f"the {what} must be finite, not {number}")
    return number


def _clean(text: str) -> str:
    """Replace lone surrogates, which no log file could store."""
    return text.encode(errors="replace").decode()


def _shortened(trace: str) -> str:
    half = TRACEBACK_LENGTH // 2
    return trace if len(trace) <= TRACEBACK_LENGTH else f"{trace[:half]}\n[...]\n{trace[-half:]}"


def _reply(grade: Callable[..., Reward], *arguments: Any) -> bytes:
    """Run user code, whatever it may raise, and put the outcome in a line of JSON."""
    try:
        reward, trace = grade(*arguments), None
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures of this answer, no more
        reward = Reward(0.0, f"error:{type(error).__name__}"[:LABEL_LENGTH])
        trace = _shortened(_clean("".join(traceback.format_exception(error)).strip()))
    return json.dumps([reward.value, reward.label, reward.correct, dict(reward.metrics), trace]).encode() + b"\n"


def _load(pickled: bytes) -> Callable[..., Any]:
    """Unpickle the reward function; ``fast=False`` is filled in where it takes ``fast`` (and nobody has)."""
    function: Callable[..., Any] = pickle.loads(pickled)
    try:
        takes_fast = "fast" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        takes_fast = False
    if takes_fast and "fast" not in getattr(function, "keywords", {}):
        return functools.partial(function, fast=False)
    return function


def _serve(link: socket.socket, requests: BinaryIO) -> None:
    path, pickled = pickle.load(requests)
    os.environ.pop("PYTHONPATH", None)  # the driver's sys.path got us here; user code starts what it likes
    if path is not None:
        os.environ["PYTHONPATH"] = path
    reward_function = functools.cache(functools.partial(_load, pickled))

    def load() -> Reward:
        reward_function()
        return Reward(0.0)

    def grade(output: str, target: bytes) -> Reward:
        return as_reward(reward_function()(output, pickle.loads(target)))

    link.sendall(_reply(load))
    while True:
        link.sendall(_reply(grade, *pickle.load(requests)))


def _settle_in(driver: int) -> None:
    """Start from default signals, leave no core files, and go when the driver goes."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then hangs up
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere, and when idle, the end of the socket's stream does it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != driver:
        sys.exit()


def main() -> None:
    """Grade until the driver hangs up, then take down everything user code has started here."""
    descriptor, driver = map(int, sys.argv[1:])
    _settle_in(driver)
    link = socket.socket(fileno=descriptor)
    link.set_inheritable(False)
    requests = link.makefile("rb")

    def hang_up() -> None:
        requests.close()
        link.close()

    # What user code forks must neither keep the line open after our death nor grade on when it returns.
    os.register_at_fork(after_in_child=hang_up)
    try:
        _serve(link, requests)
    except (EOFError, ConnectionError):
        os.killpg(0, signal.SIGKILL)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()

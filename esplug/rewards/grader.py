"""The grading process: ``python -m esplug.rewards.grader SOCKET DRIVER MEMORY``, started by :mod:`esplug.rewards.pool`.

It reads pickles from the socket whose descriptor is ``SOCKET`` and answers each with one line of JSON: first
how to run and what (``(PYTHONPATH, reward function)``), then answers (``(output, target)``) until the driver,
whose process id is ``DRIVER``, hangs up. Objects made by user code never travel back: a reply is numbers and
text, ``[value, label, correct, metrics, traceback]``, and its traceback is null unless grading failed. No more than
``MEMORY`` bytes can be allocated, unless that is empty.

There are two processes: a worker, which runs user code, and above it a supervisor, which runs none. The supervisor
adopts whatever the worker orphans, so that all of it can be found and killed, even when worker or driver are gone.
"""

import ctypes
import errno
import functools
import inspect
import io
import json
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, BinaryIO

from esplug.hookspecs import Reward

LABEL_LENGTH = 200
LARGEST = 1e100  # reward, so that the variance of many is a number
TRACEBACK_LENGTH = 4000
MOST_FRAMES = 50  # recursion without a limit leaves millions

OUT_OF_MEMORY, PROCESS_DIED = "error:MemoryError", "error:ProcessDied"

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


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
        NonFinite: the reward or a metric is infinite, not a number, or so large that sums of squares would be.
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
    if not abs(number) <= LARGEST:  # which NaN is not
        raise NonFinite(f"the {what} must be finite, and at most {LARGEST:g}, not {number}")
    return number


def _clean(text: str) -> str:
    """Replace lone surrogates, which no log file could store."""
    return text.encode(errors="replace").decode()


def _shortened(trace: str) -> str:
    half = TRACEBACK_LENGTH // 2
    return trace if len(trace) <= TRACEBACK_LENGTH else f"{trace[:half]}\n[...]\n{trace[-half:]}"


def _reply(grade: Callable[..., Reward], *arguments: Any, after: Callable[[], None]) -> bytes:
    """Run user code, whatever it may raise, and put the outcome in a line of JSON."""
    try:
        try:
            reward, trace = grade(*arguments), None
        finally:
            after()
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures of this answer, no more
        if isinstance(error, MemoryError):
            _lift_memory_limit()
        trace = _clean("".join(traceback.format_exception(error, limit=-MOST_FRAMES)).strip())
        out_of_memory = isinstance(error, MemoryError) or os.strerror(errno.ENOMEM) in trace  # PyTorch's is no subclass
        reward = Reward(0.0, OUT_OF_MEMORY if out_of_memory else f"error:{type(error).__name__}"[:LABEL_LENGTH])
        trace = _shortened(trace)
    return _line(reward, trace)


def _line(reward: Reward, trace: str | None) -> bytes:
    return json.dumps([reward.value, reward.label, reward.correct, dict(reward.metrics), trace]).encode() + b"\n"


def _restorer() -> Callable[[], None]:
    """Return a function that undoes what one answer's grading may do to that of later ones."""
    directory, depth = "/", sys.getrecursionlimit()
    with suppress(OSError):  # the driver's has been deleted
        directory = os.getcwd()

    def restore() -> None:
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else nobody could wait for a child
        sys.setrecursionlimit(max(depth, sys.getrecursionlimit()))
        try:
            os.getcwd()
        except OSError:  # it has been deleted
            with suppress(OSError):
                os.chdir(directory)

    return restore


def _lift_memory_limit() -> None:
    """Make room to say that there was none: the driver replaces this process as soon as it has been told."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


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

    link.sendall(_reply(load, after=lambda: None))
    restore = _restorer()
    while True:
        link.sendall(_reply(grade, *pickle.load(requests), after=restore))


def _settle_in(driver: int) -> None:
    """Start from default signals, leave no core files, and be told when the driver goes."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then hangs up
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere, and when idle, the end of the socket's stream does it
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # of all processes this one is missed least
    if os.getppid() != driver:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _supervise(worker: int, link: socket.socket) -> None:
    """Adopt what user code orphans, so that the driver finds it; say how the worker ended; outlive it."""
    status = None
    while status is None:
        pid, ended = os.waitpid(-1, 0)
        status = os.waitstatus_to_exitcode(ended) if pid == worker else None
    how = f"ended with exit status {status}"
    if status < 0:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
    link.sendall(_line(Reward(0.0, PROCESS_DIED), f"the grading process {how}"))
    while link.recv(1 << 16):  # until the driver hangs up, or kills what there is
        pass


def _kill_all(*_: object) -> None:
    from esplug.utils.process_tree import kill_descendants

    kill_descendants(os.getpid())
    os._exit(1)


def _work(link: socket.socket, supervisor: int, memory: str) -> None:
    """Grade until the driver hangs up."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        return
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if memory:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = int(memory) if hard == resource.RLIM_INFINITY else min(int(memory), hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # printing a strange character must not cost the answer
    requests = link.makefile("rb")

    def hang_up() -> None:
        requests.close()
        link.close()

    # What user code forks must neither keep the line open after our death nor grade on when it returns.
    os.register_at_fork(after_in_child=hang_up)
    try:
        _serve(link, requests)
    except MemoryError:
        _lift_memory_limit()
        link.sendall(_line(Reward(0.0, OUT_OF_MEMORY), "MemoryError: what was sent for grading does not fit"))
        while link.recv(1 << 16):  # let the driver send to the end and read this; then it ends this process
            pass


def main() -> None:
    """Fork a worker that grades, and see to it that nothing user code has started there outlives the driver."""
    descriptor, driver = map(int, sys.argv[1:3])
    _settle_in(driver)
    link = socket.socket(fileno=descriptor)
    link.set_inheritable(False)
    signal.signal(signal.SIGTERM, _kill_all)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    supervisor = os.getpid()
    worker = os.fork()
    try:
        if worker:
            _supervise(worker, link)
        else:
            _work(link, supervisor, sys.argv[3])
    except (EOFError, OSError):  # the driver has hung up, or user code has cut the line
        pass
    finally:
        if worker:
            _kill_all()
        os._exit(1)


if __name__ == "__main__":
    main()

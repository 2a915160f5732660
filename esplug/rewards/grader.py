"""Grader process: ``python -m esplug.rewards.grader SOCKET DRIVER MEMORY``, started by :mod:`.grader_process`.

It reads pickles from file descriptor ``SOCKET``. The first is ``(PYTHONPATH, pickled functions, limit)``; each further
one is a :data:`.user_functions.Request`, until the driver (process id ``DRIVER``) hangs up. It answers each with one
line of JSON, never with objects of user code: ``[value, label, correct, metrics, traceback, stops, messages]``, with a
traceback only if the request failed, and messages only in reply to a turn. ``stops`` says that the run has to stop, for
the reason in ``traceback``. If ``limit`` is a number of seconds, :mod:`.concurrent_grader` takes over. A process can
allocate at most ``MEMORY`` bytes; an empty ``MEMORY`` means no limit.

There are two processes: a worker that runs user code, and its parent, a supervisor that runs none. The supervisor
adopts the worker's orphans, so that all of them can be found and killed even after worker or driver died.
"""

import ctypes
import functools
import inspect
import io
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, BinaryIO

from esplug.hookspecs import Reward
from esplug.rewards.replies import (
    OUT_OF_MEMORY,
    PROCESS_DIED,
    failure_line,
    lift_memory_limit,
    outcome_line,
    reply_line,
)
from esplug.rewards.user_functions import UserFunctions

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def _reply(serve: Callable[..., bytes], *arguments: Any, after: Callable[[], None]) -> bytes:
    """Run user code, catch whatever it raises, and return the outcome as a line of JSON."""
    try:
        try:
            return serve(*arguments)
        finally:
            after()
    except BaseException as error:  # SystemExit and KeyboardInterrupt fail only this completion
        return failure_line(error)


def _restorer() -> Callable[[], None]:
    """Return a function that restores process state which grading one completion may have changed."""
    directory, depth = "/", sys.getrecursionlimit()
    with suppress(OSError):  # the driver's directory was deleted
        directory = os.getcwd()

    def restore() -> None:
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise no child could be waited for
        sys.setrecursionlimit(max(depth, sys.getrecursionlimit()))
        try:
            os.getcwd()
        except OSError:  # the directory was deleted
            with suppress(OSError):
                os.chdir(directory)

    return restore


class _Awaiter:
    """Awaits the results of asynchronous reward functions, all in one event loop, on which their clients depend."""

    def __init__(self) -> None:
        self._runner: Any = None

    def value_of(self, result: Any) -> Any:
        """Return a reward function's result, awaited if it is awaitable."""
        if not inspect.isawaitable(result):
            return result
        import asyncio  # slow, and most rewards do not need it

        self._runner = self._runner or asyncio.Runner()
        try:
            return self._runner.run(_awaited(result))
        except Exception:
            raise
        except BaseException:  # SystemExit and the like leave the loop in the middle of a step
            self._runner = None
            raise


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _answer_requests(link: socket.socket, requests: BinaryIO) -> None:
    """Load the user's functions, then serve requests until the driver hangs up (``EOFError``)."""
    path, pickled, limit = pickle.load(requests)
    os.environ.pop("PYTHONPATH", None)  # it was the driver's sys.path; processes of user code get the original
    if path is not None:
        os.environ["PYTHONPATH"] = path
    functions = functools.cache(functools.partial(UserFunctions, pickled))
    awaiter = _Awaiter()

    def load() -> bytes:
        functions()
        return reply_line(Reward(0.0))

    def serve(*request: Any) -> bytes:
        return outcome_line(awaiter.value_of(functions().call(*request)), is_turn=request[-1])

    link.sendall(_reply(load, after=lambda: None))
    restore = _restorer()
    if limit is not None:
        from esplug.rewards.concurrent_grader import ConcurrentGrader

        return ConcurrentGrader(link, functions(), limit, restore).run()
    while True:
        link.sendall(_reply(serve, *pickle.load(requests), after=restore))


def _prepare_process(driver: int) -> None:
    """Reset signal handlers, disable core dumps, and request SIGTERM when the driver dies."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then closes the socket
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the process ends when the socket closes
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # the kernel kills this process first
    if os.getppid() != driver:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _supervise(worker: int, link: socket.socket) -> None:
    """Reap orphans of user code, report how the worker ended, and wait for the driver to hang up."""
    pid = None
    while pid != worker:
        pid, ended = os.waitpid(-1, 0)
    status = os.waitstatus_to_exitcode(ended)
    how = f"ended with exit status {status}"
    if status < 0:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
    link.sendall(reply_line(Reward(0.0, PROCESS_DIED), f"the grading process {how}"))
    while link.recv(1 << 16):  # until the driver hangs up or kills this process
        pass


def _kill_all(*_: object) -> None:
    """Kill all descendants and exit; also the handler of SIGTERM."""
    from esplug.utils.process_tree import kill_descendants

    kill_descendants(os.getpid())
    os._exit(1)


def _work(link: socket.socket, supervisor: int, memory: str) -> None:
    """Run the worker: limit its memory and grade until the driver hangs up."""
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
        sys.stdout.reconfigure(errors="backslashreplace")  # printing any character must work
    requests = link.makefile("rb")

    def hang_up() -> None:
        requests.close()
        link.close()

    # Forks of user code must neither keep the socket open after this process died nor answer requests.
    os.register_at_fork(after_in_child=hang_up)
    try:
        _answer_requests(link, requests)
    except MemoryError:
        lift_memory_limit()
        link.sendall(reply_line(Reward(0.0, OUT_OF_MEMORY), "MemoryError: the request does not fit in memory"))
        while link.recv(1 << 16):  # the driver finishes sending, reads the reply, and kills this process
            pass


def main() -> None:
    """Fork a worker that grades; as its supervisor, kill everything user code started when the driver is gone."""
    descriptor, driver = map(int, sys.argv[1:3])
    _prepare_process(driver)
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
    except (EOFError, OSError):  # the driver hung up, or user code closed the socket
        pass
    finally:
        if worker:
            _kill_all()
        os._exit(1)


if __name__ == "__main__":
    main()

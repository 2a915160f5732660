"""Handle of one grader process: starts it, sends requests, enforces the time and memory limits, and kills it."""

import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

from esplug.hookspecs import Reward
from esplug.rewards.grades import Graded
from esplug.rewards.replies import OUT_OF_MEMORY, PROCESS_DIED
from esplug.utils.cores import GIB
from esplug.utils.process_tree import descendants, kill_descendants, memory_exceeds

SEND_TIMEOUT = 60.0  # seconds for a grader to read a request
MEMORY_CHECK_INTERVAL = 0.2  # seconds between two memory checks while a reply is pending
MAX_REPLY_BYTES = 1 << 20
MAX_DESCENDANTS = 64  # leftover processes with which a grader is replaced
COUNT_EVERY = 100  # completions between two counts of a grader's descendants
LOAD_TIMEOUT = 300.0  # seconds for a grader to import the reward function

#: One thread per grader, as there are as many graders as cores. No accelerator, as the engines own it.
_THREADS = ("MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""} | dict.fromkeys(_THREADS, "1")


class GraderProcess:
    """A grader process (with its supervisor) and the driver's end of their socket. Used by one thread.

    Only :meth:`hang_up` may be called from another thread, before :meth:`close`.
    """

    def __init__(self, environment: dict[str, str], memory: float | None) -> None:
        """Start the process, which may use ``memory`` GiB together with its descendants; ``None`` for no limit."""
        self._memory_limit = math.inf if memory is None else memory * GIB
        limit = "" if memory is None else str(math.ceil(self._memory_limit))
        self._socket, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), limit]
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "esplug.rewards.grader", *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
        except BaseException:
            self._socket.close()
            raise
        self._rest, self._graded = b"", -1  # as the first request loads the reward function
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    @property
    def dead(self) -> bool:
        """Whether the process was killed and reaped."""
        return self._process.returncode is not None

    def has_hung_up(self) -> bool:
        """Whether the idle process closed the socket or sent an unexpected message."""
        return bool(self._poll.poll(0))

    def is_crowded(self) -> bool:
        """Whether user code left too many processes behind, including zombies. Counts them now and then."""
        if self._graded < 1 or self._graded % COUNT_EVERY:
            return False
        return len(descendants(self._process.pid)) > MAX_DESCENDANTS

    def is_spent(self) -> bool:
        """Whether another process has to take the place of this one, which waits for a request."""
        return self.dead or self.has_hung_up() or self.is_crowded()

    def send(self, request: bytes) -> None:
        """Send a request. Raises ``OSError`` if the process is gone or does not read."""
        self._graded += 1
        self._socket.settimeout(SEND_TIMEOUT)
        self._socket.sendall(request)

    def lines(self, wait: float) -> list[bytes]:
        """Return the lines that arrive within ``wait`` seconds. Raises ``EOFError`` if the connection is closed."""
        self._socket.settimeout(wait)
        try:
            received = self._socket.recv(1 << 16)
        except TimeoutError:
            return []
        *lines, self._rest = (self._rest + received).split(b"\n")
        if not received or len(self._rest) > MAX_REPLY_BYTES:
            raise EOFError
        return lines

    def check_memory(self) -> None:
        """Raise ``MemoryLimitExceeded`` if the process and its descendants use too much."""
        if memory_exceeds(self._process.pid, self._memory_limit):
            limit = f"{self._memory_limit / GIB:g} GiB"
            raise MemoryLimitExceeded(f"killed: the grading process and its descendants used over {limit}")

    def ask(self, request: bytes, timeout: float) -> Graded:
        """Send a request and wait for the reply, but at most ``timeout`` seconds.

        This enforces a reward's time-out and memory limit: it kills a process that misbehaves, and returns the failure.
        """
        try:
            self.send(request)
            graded = decoded(json.loads(self._receive(timeout)))
        except TimeoutError:
            self.kill()
            return Graded.failure("timeout", f"no answer within {timeout:g} s")
        except MemoryLimitExceeded as error:
            self.kill()
            return Graded.failure(OUT_OF_MEMORY, str(error))
        except Exception:  # the process died, or user code wrote to the socket
            self.kill()
            return Graded.failure(PROCESS_DIED, "the grading process closed its connection or sent an invalid reply")
        if graded.reward.label in (OUT_OF_MEMORY, PROCESS_DIED):  # memory may still be full, or processes left over
            self.kill()
        return graded

    def _receive(self, timeout: float) -> bytes:
        """Read one line. Raises ``EOFError`` if the connection closed or more than one line arrived."""
        deadline, line = time.monotonic() + timeout, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            self._socket.settimeout(max(min(left, MEMORY_CHECK_INTERVAL), 1e-3))
            try:
                received = self._socket.recv(1 << 16)
            except TimeoutError:
                if left <= MEMORY_CHECK_INTERVAL:
                    raise
                self.check_memory()
                continue
            line += received
            if not received or len(line) > MAX_REPLY_BYTES or b"\n" in line[:-1]:
                raise EOFError
        return line

    def kill(self) -> None:
        """Kill the process and all its descendants, and reap it."""
        if not self.dead:  # not reaped, so its process id is still its own
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGSTOP)  # stopped, it still adopts orphans but starts no process
            kill_descendants(self._process.pid)
            self._process.kill()
            self._process.wait()

    def hang_up(self) -> None:
        """Shut down the socket, so that a thread that waits for a reply stops waiting."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill the process and close the socket."""
        self.kill()
        self._socket.close()


def decoded(reply: object) -> Graded:
    """Return the grade of a reply of :mod:`.grader`. Raises ``TypeError`` or ``ValueError`` if it is none."""
    match reply:
        case [
            float() as value,
            str() as label,
            bool() | None as correct,
            dict() as metrics,
            str() | None as trace,
            bool() as stops,
            list() | None as messages,
        ]:
            return Graded(Reward(value, label, correct, metrics), trace is not None, trace, stops, messages)
    raise TypeError("invalid reply")


class MemoryLimitExceeded(Exception):  # noqa: N818 - never leaves this room
    """A grader and its descendants use more memory than allowed."""

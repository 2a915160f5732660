"""Concurrent grader: grades several completions at once in one event loop, for rewards that await a server.

It runs in a grader process in place of the loop of :mod:`.grader`. Each request is a :data:`HEADER` with its number and
length, and the pickle of a :data:`.user_functions.Request`. Each reply is a line of JSON, ``[number, awaited, reply]``,
in the order in which requests end. ``reply`` is that of :mod:`.grader`; ``awaited`` says whether the user's function
returned an awaitable.
"""

import asyncio
import inspect
import pickle
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from esplug.hookspecs import Reward
from esplug.rewards.replies import failure_line, outcome_line, reply_line
from esplug.rewards.user_functions import Request, UserFunctions

HEADER = struct.Struct("<QQ")


class ConcurrentGrader:
    """Grades completions as they arrive.

    Args:
        link: where requests come from and replies go.
        functions: serve one request.
        limit: seconds that one completion may take; after that, its grading is cancelled.
        restore: restores process state that user code may have changed.
    """

    def __init__(
        self, link: socket.socket, functions: UserFunctions, limit: float, restore: Callable[[], None]
    ) -> None:
        self._link, self._functions, self._limit, self._restore = link, functions, limit, restore
        self._received, self._unsent = bytearray(), bytearray()
        self._running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly

    def run(self) -> None:
        """Grade until the driver hangs up (``EOFError``)."""
        asyncio.Runner().run(self._serve())  # never closed: that would cancel gradings, which would reply so

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                self._read(loop)
            except BaseException as error:
                loop.remove_reader(self._link)
                finished.set_exception(error)

        # No thread reads, because a lock that it holds would stay locked in a fork of user code.
        loop.add_reader(self._link, read)
        await finished

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start grading the completions that have arrived."""
        received = self._link.recv(1 << 20, socket.MSG_DONTWAIT)
        if not received:
            raise EOFError
        self._received += received
        while len(self._received) >= HEADER.size:
            number, length = HEADER.unpack_from(self._received)
            if len(self._received) < HEADER.size + length:
                return
            request = pickle.loads(self._received[HEADER.size : HEADER.size + length])
            del self._received[: HEADER.size + length]
            self._running.add(task := loop.create_task(self._answer(number, request)))
            task.add_done_callback(self._running.discard)

    async def _answer(self, number: int, request: Request) -> None:
        awaited, clock = False, asyncio.timeout(self._limit)
        try:
            result = self._functions.call(*request)
            if awaited := inspect.isawaitable(result):
                async with clock:
                    result = await result
            line = outcome_line(result, is_turn=request[-1])
        except BaseException as error:  # SystemExit and CancelledError fail only this completion
            line = failure_line(error)
            if clock.expired():
                line = reply_line(Reward(0.0, "timeout"), f"no answer within {self._limit:g} s")
        self._restore()
        self._unsent += b"[%d,%s,%s]\n" % (number, b"true" if awaited else b"false", line.strip())
        self._send()

    def _send(self) -> None:
        """Send replies, without waiting: the driver may be sending requests, and then reads none until all are read."""
        loop = asyncio.get_running_loop()
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._link.send(self._unsent, socket.MSG_DONTWAIT)]
            loop.remove_writer(self._link)
            return
        loop.add_writer(self._link, self._send)

"""Flight: the completions that one grader process grades at once."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from esplug.rewards.concurrent_grader import HEADER
from esplug.rewards.grader_process import MEMORY_CHECK_INTERVAL, GraderProcess, MemoryLimitExceeded, decoded
from esplug.rewards.grades import Graded
from esplug.rewards.replies import OUT_OF_MEMORY, PROCESS_DIED
from esplug.rewards.requests import Ungraded

POLL = 0.05  # seconds to wait for a reply before looking for further completions


@dataclass(frozen=True, slots=True)
class _Sent:
    completion: Ungraded
    began: float
    started: float


class Flight:
    """Completions sent to a :mod:`.concurrent_grader`, and their grades. Used by one thread.

    The grader cancels a grading that takes too long. If the whole process blocks, dies or uses too much memory, it is
    killed. A completion that was alone in the flight is then to blame and fails; several are lost, and have to be
    graded again one at a time.

    Args:
        grader: the process.
        slots: completions that it may grade at once. A reward function that does not await gets one at a time.
        timeout: seconds that grading one completion may take.
    """

    def __init__(self, grader: GraderProcess, slots: int, timeout: float) -> None:
        self._grader, self._slots, self._timeout = grader, slots, timeout
        self._awaits = False
        self._sent: dict[int, _Sent] = {}
        self._numbers = itertools.count()
        self._memory_checked = 0.0

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def has_room(self) -> bool:
        """Whether the grader can take another completion now."""
        return len(self) < (self._slots if self._awaits else 1)

    def send(self, completion: Ungraded) -> list[tuple[Ungraded, Graded]]:
        """Send a completion. Returns a failure if the process is gone and had no other."""
        number = next(self._numbers)
        header = HEADER.pack(number, len(completion.request))
        self._sent[number] = _Sent(completion, time.time(), time.perf_counter())
        return self._guarded(lambda: self._grader.send(header + completion.request))

    def receive(self) -> list[tuple[Ungraded, Graded]]:
        """Return the completions that were graded in the last moment, with their grades."""
        graded: list[tuple[Ungraded, Graded]] = []
        return graded + self._guarded(lambda: self._collect(graded))

    def lost(self) -> list[Ungraded]:
        """Return the completions that have no grade."""
        return [sent.completion for sent in self._sent.values()]

    def _collect(self, graded: list[tuple[Ungraded, Graded]]) -> None:
        for line in self._grader.lines(POLL):
            number, awaited, reply = json.loads(line)
            grade = decoded(reply)
            self._awaits = awaited is True
            out_of_memory = grade.reward.label == OUT_OF_MEMORY
            if not out_of_memory or len(self) == 1:  # among several, another one may have taken the memory
                graded.append(self._settled(number, grade))
            if out_of_memory:  # memory may still be full
                return self._grader.kill()
        now = time.perf_counter()
        if now - min((sent.started for sent in self._sent.values()), default=now) > self._timeout * 1.1 + 1:
            raise TimeoutError
        if now - self._memory_checked > MEMORY_CHECK_INTERVAL:
            self._memory_checked = now
            self._grader.check_memory()

    def _settled(self, number: int, grade: Graded) -> tuple[Ungraded, Graded]:
        sent = self._sent.pop(number)
        return sent.completion, replace(grade, began=sent.began, seconds=time.perf_counter() - sent.started)

    def _guarded(self, talk: Callable[[], None]) -> list[tuple[Ungraded, Graded]]:
        """Talk to the process. If that fails, kill it, and return the failure of a completion that was alone."""
        try:
            talk()
            return []
        except TimeoutError:
            failure = Graded.failure("timeout", f"no answer within {self._timeout:g} s")
        except MemoryLimitExceeded as error:
            failure = Graded.failure(OUT_OF_MEMORY, str(error))
        except Exception:  # the process died, or user code wrote to the socket
            failure = Graded.failure(PROCESS_DIED, "the grading process died, or sent an invalid reply")
        self._grader.kill()
        return [self._settled(number, failure) for number in list(self._sent)] if len(self) == 1 else []

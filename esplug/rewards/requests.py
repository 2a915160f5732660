"""Requests to graders: the function to load, completions to grade, and turns to reply to."""

import os
import pickle
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import cloudpickle

from esplug.errors import UserError
from esplug.hookspecs import Message
from esplug.rewards.grades import PendingRewards
from esplug.rewards.user_functions import Request


@dataclass(frozen=True, slots=True)
class Grading:
    """How graders grade.

    Attributes:
        name: the reward function, for error messages.
        functions: the reward function and the turn function, pickled.
        timeout: seconds that grading one completion may take.
        memory: GiB that one grader may use; ``None`` for no limit.
    """

    name: str
    functions: bytes
    timeout: float
    memory: float | None

    def load_request(self, limit: float | None) -> bytes:
        """Ask a grader to load the functions. With a ``limit`` in seconds, it grades several completions at once."""
        return pickle.dumps((os.environ.get("PYTHONPATH"), self.functions, limit))


@dataclass(frozen=True, slots=True)
class Ungraded:
    """One completion to grade, or one turn to reply to: where its grade goes, and its pickled :data:`.Request`."""

    pending: PendingRewards
    index: int
    request: bytes
    is_turn: bool = False

    @classmethod
    def completion(cls, pending: PendingRewards, index: int, output: str, target: Any, messages: list[Message]) -> Self:
        """Ask for the reward of an output, with which a conversation may have ended. Raises ``UserError``."""
        request: Request = output, _pickled(target, index), messages, False
        return cls(pending, index, pickle.dumps(request))

    @classmethod
    def turn(cls, pending: PendingRewards, index: int, messages: list[Message], target: Any) -> Self:
        """Ask for the environment's reply to a conversation. Raises ``UserError``."""
        request: Request = "", _pickled(target, index), messages, True
        return cls(pending, index, pickle.dumps(request), is_turn=True)


def _pickled(target: object, index: int) -> bytes:
    """Pickle a target so that a process with another ``__main__`` can load it."""
    with suppress(Exception):
        pickled = pickle.dumps(target)
        if b"__main__" not in pickled:
            return pickled
    try:
        return bytes(cloudpickle.dumps(target))
    except Exception as error:
        raise UserError(
            f"target {index} ({type(target).__name__}) cannot be pickled ({error}); "
            "have the task's collate return plain data"
        ) from error

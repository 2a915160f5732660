"""User functions: the reward function of a run, and the function of a task of several turns, in a grader process."""

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any, TypeAlias

from esplug.hookspecs import Message

#: What a grader is asked: an output, a pickled target, the messages of a conversation, and whether to reply to it
#: (rather than to grade it).
Request: TypeAlias = tuple[str, bytes, list[Message], bool]


def name_of(function: Callable[..., Any]) -> str:
    """Return a function's name, without the arguments of a partial or the fields of an object, which may be secrets."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", type(function).__qualname__)


class UserFunctions:
    """The functions of a pickle of the pair of them. Unpickling imports the modules that define them.

    A reward function gets ``fast=False`` and ``messages`` if it has unbound parameters of these names.
    """

    def __init__(self, pickled: bytes) -> None:
        self._reward, self._turn = pickle.loads(pickled)
        try:
            parameters = set(inspect.signature(self._reward).parameters)
        except (TypeError, ValueError):  # some callables written in C have no signature
            parameters = set()
        unbound = parameters - getattr(self._reward, "keywords", {}).keys()
        self._fast: dict[str, Any] = {"fast": False} if "fast" in unbound else {}
        self._takes_messages = "messages" in unbound

    def call(self, output: str, target: bytes, messages: list[Message], is_turn: bool) -> Any:
        """Return what user code returns for a request; it may be awaitable. Raises what user code raises."""
        if is_turn:
            return self._turn(messages, pickle.loads(target))
        whole = {"messages": messages} if self._takes_messages else {}
        return self._reward(output, pickle.loads(target), **self._fast, **whole)

"""Conversation: what a model and a task's environment say in turn after a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from esplug.hookspecs import Message, Prompt

#: Why a conversation ended: the task ended it, it reached ``--max-turns``, the next prompt would not have fitted into
#: the model's length, or it failed.
Ended = Literal["task", "max_turns", "too_long", "failed"]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that has ended.

    Attributes:
        opening: messages of the prompt.
        said: messages after the prompt: answers (role ``assistant``) and replies of the environment in turn. The last
            one is an answer.
        ended: why it ended.
        failure: label and details of a failed turn, which decide the reward; ``None`` if none failed.
    """

    opening: tuple[Message, ...]
    said: tuple[Message, ...]
    ended: Ended
    failure: tuple[str, str] | None = None

    @property
    def messages(self) -> list[Message]:
        """The whole conversation."""
        return [*self.opening, *self.said]

    @property
    def turns(self) -> int:
        """Number of answers."""
        return n_answers(self.said)


def n_answers(said: Sequence[Message]) -> int:
    """Return the number of the model's answers among the messages after a prompt."""
    return sum(message["role"] == "assistant" for message in said)


def opening_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Return a prompt as messages: text is one message of the role ``user``."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def answered(text: str) -> Message:
    """Return an answer as a message."""
    return {"role": "assistant", "content": text}

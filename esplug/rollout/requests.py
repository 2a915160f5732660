"""Requests: prompts to answer, the rules for all of them, and their answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Sampler:
    """How to choose a token. Temperature 0 is greedy: the first of the most probable tokens."""

    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether no random numbers are needed."""
        return self.temperature == 0


GREEDY = Sampler()


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer.

    Attributes:
        prompt: token ids; at least one.
        seed: for sampling; below 2**63.
        adapter: slot of the low-rank member that answers, from 1 on; 0 without one.
    """

    prompt: Sequence[int]
    seed: int = 0
    adapter: int = 0


class StopTexts(Protocol):
    """Finds texts at which answers stop."""

    @property
    def tokens(self) -> frozenset[int]:
        """Ids of the tokens that can complete one."""

    def complete(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Return whether the last token of an answer completes one."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How to answer.

    Attributes:
        max_tokens: of an answer.
        end_tokens: ids of tokens that end an answer; they are part of it.
        stops: texts at which answers stop.
    """

    max_tokens: int
    sampler: Sampler = GREEDY
    end_tokens: frozenset[int] = frozenset()
    stops: StopTexts | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of an answer, and whether it ended before its longest length."""

    tokens: list[int]
    finished: bool

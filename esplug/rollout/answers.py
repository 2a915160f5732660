"""Answers in the making, on the host: collects decoded tokens, and sees which answers have ended."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from esplug.rollout.requests import Answer, Request, Rules
from esplug.rollout.rows import LOOK_EVERY
from esplug.rollout.sampling import uniforms


@dataclass(frozen=True, slots=True)
class Look:
    """Steps that were launched at once."""

    answers: np.ndarray  # int64[rows]; index of each row's answer
    before: np.ndarray  # int64[rows]; steps of each row's answer that were launched earlier
    steps: int


class Answers:
    """The answers to all requests, as far as the host has seen them.

    Args:
        longest: positions that an answer can have, with its prompt.

    Raises:
        ValueError: a prompt has no tokens, or leaves no room for an answer.
    """

    def __init__(self, requests: Sequence[Request], rules: Rules, longest: int, vocabulary: int) -> None:
        count = len(requests)
        self._requests, self._stops = requests, rules.stops
        self._prompt = np.array([len(each.prompt) for each in requests], dtype=np.int64)
        if count and not 1 <= self._prompt.min() <= self._prompt.max() < longest:
            raise ValueError(
                f"prompts must have 1 to {longest - 1} tokens; these have {self._prompt.min()} to {self._prompt.max()}"
            )
        self.most = np.minimum(rules.max_tokens, longest - self._prompt)  # tokens of each answer
        self._tokens = np.zeros((count, int(self.most.max(initial=0)) + LOOK_EVERY), dtype=np.int32)
        self._length = np.zeros(count, dtype=np.int64)
        self.launched = np.zeros(count, dtype=np.int64)  # steps
        self.done = np.zeros(count, dtype=bool)
        self._finished = np.zeros(count, dtype=bool)
        self.ends = _members(rules.end_tokens, vocabulary)
        self._may_stop = _members(rules.stops.tokens if rules.stops else (), vocabulary)
        self._uniforms: np.ndarray | None = None
        if not rules.sampler.greedy:
            drawn = [uniforms(each.seed, self._tokens.shape[1]) for each in requests]
            self._uniforms = np.array(drawn, dtype=np.float32).reshape(count, -1)

    def last_position(self, index: int) -> int:
        """Return the last position of an answer from which another token may follow."""
        return int(self._prompt[index] + self.most[index] - 2)

    def launch(self, rows: np.ndarray, most_steps: int) -> Look | None:
        """Note that the answers in these rows are decoded further. Returns ``None`` if none needs another step."""
        left = np.where(self.done[rows], 0, self.most[rows] - self.launched[rows])
        steps = min(most_steps, int(left.max(initial=0)))
        if steps <= 0:
            return None
        look = Look(rows, self.launched[rows], steps)
        self.launched[rows] += steps
        return look

    def uniforms(self, look: Look) -> np.ndarray | None:
        """Return uniform numbers for a look's steps, laid out as the device's tokens are; ``None`` without need."""
        if self._uniforms is None:
            return None
        laid_out = np.zeros((len(look.answers), LOOK_EVERY), dtype=np.float32)
        index = np.minimum(look.before[:, None] + np.arange(look.steps), self._uniforms.shape[1] - 1)
        drawn = np.take_along_axis(self._uniforms[look.answers], index, axis=1)
        np.put_along_axis(laid_out, self._columns(look), drawn, axis=1)
        return laid_out

    def receive(self, look: Look, recent: np.ndarray) -> None:
        """Take a look's tokens from ``recent``, int32[rows, LOOK_EVERY], and find answers that have ended."""
        live = ~self.done[look.answers]
        answers, before = look.answers[live], look.before[live]
        if not len(answers):
            return
        tokens = np.take_along_axis(recent, self._columns(look), axis=1)[live]
        self._tokens[answers[:, None], before[:, None] + np.arange(look.steps)] = tokens
        valid = np.minimum(look.steps, self.most[answers] - before)  # tokens up to the longest length
        here = np.arange(look.steps) < valid[:, None]
        ends = self.ends[tokens] & here
        ended = ends.any(axis=1)
        valid = np.where(ended, ends.argmax(axis=1) + 1, valid)
        if self._stops:
            may = self._may_stop[tokens] & (np.arange(look.steps) < valid[:, None])
            for row in np.flatnonzero(may.any(axis=1)):
                for step in np.flatnonzero(may[row]):
                    length = int(before[row] + step + 1)
                    if self._stops.complete(
                        self._requests[answers[row]].prompt, self._tokens[answers[row], :length].tolist()
                    ):
                        valid[row], ended[row] = step + 1, True
                        break
        self._length[answers] = before + valid
        self._finished[answers] = ended
        self.done[answers] = ended | (before + valid >= self.most[answers])

    def results(self) -> list[Answer]:
        """Return all answers."""
        lengths, finished = self._length.tolist(), self._finished.tolist()
        return [
            Answer(row[:length].tolist(), end) for row, length, end in zip(self._tokens, lengths, finished, strict=True)
        ]

    def _columns(self, look: Look) -> np.ndarray:
        """Return where the device keeps each step's token: at its position modulo ``LOOK_EVERY``."""
        first = self._prompt[look.answers] - 1 + look.before
        columns: np.ndarray = (first[:, None] + np.arange(look.steps)) % LOOK_EVERY
        return columns


def _members(tokens: Iterable[int], vocabulary: int) -> np.ndarray:
    """Return bool[vocabulary], true for these tokens."""
    flags = np.zeros(vocabulary, dtype=bool)
    flags[[token for token in tokens if 0 <= token < vocabulary]] = True
    return flags

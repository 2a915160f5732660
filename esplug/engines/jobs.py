"""Jobs: the prompts that engines answer with a member's weights, mini-batch by mini-batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from esplug.engines.messages import Generation, Sampling, Weights
from esplug.engines.scheduler import Piece

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Job(Generic[Key]):
    """Prompts to answer with each of some weights in one batch. Several weights must be low-rank members.

    Attributes:
        keys: one for each of the weights; they tell the caller whose answers it gets.
        weights: to answer with at once, on one engine.
        prompts: token ids of B prompts.
        seeds: sampling seed of each prompt; below 2**63.
        mini_batch_size: prompts that an engine answers at a time. Engines can share a job by mini-batches.
        shared_prompts: whether other jobs have the same prompts.
    """

    keys: Sequence[Key]
    weights: Sequence[Weights]
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    sampling: Sampling
    mini_batch_size: int
    shared_prompts: bool = True

    def n_mini_batches(self) -> int:
        """Return the number of mini-batches; at least 1."""
        return max(1, math.ceil(len(self.prompts) / self.mini_batch_size))

    def mini_batch(self, number: int) -> slice:
        """Return which prompts are in a mini-batch."""
        return slice(number * self.mini_batch_size, (number + 1) * self.mini_batch_size)


class FollowUps(Protocol[Key]):
    """Jobs that follow from the answers to others, such as the next turns of conversations."""

    def ready(self) -> list[tuple[Piece[Job[Key]], Job[Key]]]:
        """Return the jobs that have become ready, each after the piece that it follows from."""

    def awaited(self) -> Sequence[Piece[Job[Key]]]:
        """Return the pieces from which jobs may follow without another answer."""

    def some_ready(self) -> bool:
        """Whether :meth:`ready` has something to do."""


class NoFollowUps:
    """No jobs follow."""

    def ready(self) -> list[Any]:
        """Return nothing."""
        return []

    awaited = ready

    def some_ready(self) -> bool:
        """Return that nothing is ready."""
        return False


class PromptStore:
    """Ray references to mini-batches of prompts: a mini-batch travels once, not once for each member."""

    def __init__(self) -> None:
        self._prompts: Any = None
        self._refs: dict[int, Any] = {}

    def ref(self, piece: Piece[Job[Any]]) -> Any:
        """Return a reference to a piece's prompts. Only the last shared prompts are kept."""
        import ray

        prompts = piece.job.prompts
        if not piece.job.shared_prompts:
            return ray.put(prompts[piece.job.mini_batch(piece.number)])
        if prompts is not self._prompts:
            self._prompts, self._refs = prompts, {}
        if piece.number not in self._refs:
            self._refs[piece.number] = ray.put(prompts[piece.job.mini_batch(piece.number)])
        return self._refs[piece.number]


class AnswerCollector(Generic[Key]):
    """Puts the mini-batches of a job, which finish in any order, together again."""

    def __init__(self) -> None:
        self._parts: dict[Key, dict[int, list[Generation]]] = {}  # by a job's first key, then by mini-batch

    def add(self, piece: Piece[Job[Key]], generations: list[Generation]) -> list[tuple[Key, Generation]]:
        """Add the answers to a piece. Return the job's keys and answers if this was its last mini-batch."""
        job = piece.job
        parts = self._parts.setdefault(job.keys[0], {})
        parts[piece.number] = generations
        if len(parts) < job.n_mini_batches():
            return []
        del self._parts[job.keys[0]]
        in_order = [parts[number] for number in range(len(parts))]
        return [(key, Generation.joined([part[i] for part in in_order])) for i, key in enumerate(job.keys)]

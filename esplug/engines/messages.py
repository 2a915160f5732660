"""Messages between the pool of engines and its actors. All are frozen, and hold no live objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine needs to start; equal for all engines of a run."""

    model: str
    dtype: str
    master_dtype: Literal["float32", "model"]
    master_device: Literal["auto", "gpu", "host"]
    device: Literal["cuda", "cpu"]
    tensor_parallel_size: int
    max_model_len: int | None
    memory_share: float | None  # cuda: of each GPU's memory; cpu: of what is free, for all engines of a machine
    low_rank: int | None = None  # of the members' perturbations; full where it is None
    members_at_once: int = 1  # with low rank
    engines_per_gpu: int = 1
    prefix_caching: bool = True  # whether prompts of one member share what they begin with


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights to answer with: ``master + scale * eps(member_seed)``, or the master itself."""

    member_seed: int | None = None
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample; temperature 0 is greedy. ``stop`` texts are kept in the answer, ``stop_token_ids`` are not."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text without the prompt, its length in tokens, and whether it ended by itself."""

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True)
class Work:
    """What an engine did in one go.

    Attributes:
        engine: its number in the pool, which the pool fills in.
        began: when, in Unix seconds of its machine.
        switch_seconds: to write a member's weights; 0 where it held them already.
        generate_seconds: to answer, after that.
        members: that were answered with together.
    """

    engine: int
    began: float
    switch_seconds: float
    generate_seconds: float
    members: int = 1


@dataclass(frozen=True, slots=True)
class Generation:
    """Answers to a batch of prompts, in their order, and the work that they took.

    Attributes:
        undefined: tokens for which the model gave NaN or infinity instead of probabilities. If there are any, none
            of the answers means anything.
    """

    completions: list[Completion]
    work: tuple[Work, ...] = ()
    undefined: int = 0

    @property
    def switch_seconds(self) -> float:
        """Seconds spent on writing weights; members that were answered with together share them."""
        return sum(work.switch_seconds / work.members for work in self.work)

    @property
    def generate_seconds(self) -> float:
        """Seconds spent on answering; likewise."""
        return sum(work.generate_seconds / work.members for work in self.work)

    @classmethod
    def joined(cls, parts: Sequence["Generation"]) -> "Generation":
        """Put together what answers to successive stretches of the prompts."""
        completions = [completion for part in parts for completion in part.completions]
        work = tuple(work for part in parts for work in part.work)
        return cls(completions, work, sum(part.undefined for part in parts))

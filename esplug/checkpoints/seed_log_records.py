"""Records of a seed log: what a run started from, and the update of each iteration."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from esplug.es.members import population
from esplug.es.update import momentum_weights
from esplug.noise.full_rank import float32
from esplug.noise.low_rank import scale

_MASTER_DTYPES = ("float32", "model")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a run started from.

    Attributes:
        name: folder or Hugging Face id, as the user gave it.
        revision: commit on the Hub; ``None`` if the model is not from the Hub.
        weights_checksum: 64-bit checksum of the master weights before the first iteration.
    """

    name: str
    revision: str | None
    weights_checksum: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.revision, str | None):
            raise ValueError("the base model's name and revision must be text")
        _check_u64("weights checksum", self.weights_checksum)


@dataclass(frozen=True, slots=True)
class Header:
    """Everything that a replay needs besides the updates.

    Attributes:
        base: the base model.
        master_dtype: ``float32``, or ``model`` if the master weights have the checkpoint's own types.
        run_seed: seed from which all member seeds are derived.
        settings: the run's settings, as JSON values. A replay does not use them.
        low_rank: rank of the members' noise (:mod:`esplug.noise.low_rank`); ``None`` for full-rank noise.
    """

    base: Base
    master_dtype: Literal["float32", "model"]
    run_seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    low_rank: int | None = None

    def __post_init__(self) -> None:
        _check_u64("run seed", self.run_seed)
        if self.master_dtype not in _MASTER_DTYPES:
            raise ValueError(f"master dtype {self.master_dtype!r} must be one of {', '.join(_MASTER_DTYPES)}")
        if self.low_rank is not None:
            scale(self.low_rank)  # raises if the rank is out of range


@dataclass(frozen=True, slots=True)
class Step:
    """The update of one iteration.

    Attributes:
        iteration: number of the iteration, from 0.
        coefficients: one for each of the N members, rounded to float32.
        antithetic: whether the members are mirrored pairs.
        checksum: 64-bit checksum of the master weights after the update.
        momentum: weight of the previous update in this one, from 0 to 0.99.

    Raises:
        ValueError: there are no coefficients, one is not finite in float32, or a number is out of range.
    """

    iteration: int
    coefficients: tuple[float, ...]
    antithetic: bool
    checksum: int
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 0.99:
            raise ValueError(f"momentum {self.momentum} must be from 0 to 0.99")
        _check_u64("iteration", self.iteration)
        _check_u64("checksum", self.checksum)
        count = f"<{len(self.coefficients)}f"
        try:
            rounded = struct.unpack(count, struct.pack(count, *self.coefficients))
        except OverflowError:
            rounded = (float("inf"),)
        if not rounded or not all(abs(value) < float("inf") for value in rounded):  # NaN compares false
            raise ValueError(
                f"iteration {self.iteration}: needs at least one coefficient, and all must be finite in float32"
            )
        object.__setattr__(self, "coefficients", rounded)

    def seeds(self, run_seed: int) -> list[int]:
        """Return the seeds of the N members, in order."""
        members = population(run_seed, self.iteration, len(self.coefficients), antithetic=self.antithetic)
        return [member.seed for member in members]


class Recorded(NamedTuple):
    """Content of a seed log: its header, its steps, and whether a torn last record was dropped."""

    header: Header
    steps: list[Step]
    torn: bool


def weighted_steps(steps: Sequence[Step]) -> list[tuple[Step, list[float]]]:
    """Return the steps whose noise the last of ``steps`` adds to the weights, each with its members' coefficients.

    The last step comes first, followed by the earlier steps that momentum includes. The list is empty if all
    coefficients are zero.
    """
    found = [
        (step, [float32(weight * value) for value in step.coefficients])
        for weight, step in zip(momentum_weights(steps[-1].momentum), reversed(steps), strict=False)
    ]
    return found if any(any(values) for _, values in found) else []


def movement(steps: Sequence[Step], run_seed: int) -> tuple[list[int], list[float]]:
    """Return :func:`weighted_steps` as a seed and a coefficient for each perturbation to add, in order."""
    found = weighted_steps(steps)
    seeds = [seed for step, _ in found for seed in step.seeds(run_seed)]
    return seeds, [value for _, values in found for value in values]


def _check_u64(what: str, value: int) -> None:
    if not 0 <= value < 2**64:
        raise ValueError(f"{what} must be between 0 and 2**64 - 1, got {value}")


def why_unchanged(base: int, steps: Sequence[Step]) -> str:
    """Say why updates left the weights, whose checksum was ``base``, as they were, and what to try.

    Returns ``""`` if the updates moved the weights, or if there are none.
    """
    if not steps or steps[-1].checksum != base:
        return ""
    if any(any(step.coefficients) for step in steps):
        return "every update was too small to change a weight; try a larger alpha"
    to_try = "a reward that gives partial credit, easier prompts, more of them, a larger sigma or a larger model"
    return f"all members earned the same in every iteration; try {to_try}"

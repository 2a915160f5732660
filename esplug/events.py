"""Events: the frozen records that the hooks ``on_iteration_end``, ``on_evaluation_end`` and ``on_run_end`` receive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np

Status: TypeAlias = Literal["finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class IterationEnd:
    """The end of an iteration. Its update is in the weights and in the seed log.

    Attributes:
        iteration: number of the iteration, from 0; ``iteration + 1`` updates are made.
        rewards: float64[N, B]; reward of member n on prompt b. Read-only.
        utilities: float64[N]; utility of each member. Read-only.
        coefficients: N factors by which the update added the members' noise, rounded to float32.
        checksum: 64-bit checksum of the master weights after the update.
        metrics: the iteration's metrics, as ``log`` gets them. Read-only.
    """

    iteration: int
    rewards: "np.ndarray[Any, np.dtype[np.float64]]"
    utilities: "np.ndarray[Any, np.dtype[np.float64]]"
    coefficients: tuple[float, ...]
    checksum: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EvaluationEnd:
    """The end of an evaluation, which is on disk.

    Attributes:
        updates: number of updates made before the evaluation.
        metrics: the evaluation's metrics, as ``log`` gets them, such as ``eval/average/reward/mean``. Read-only.
        earlier: ``updates`` and ``metrics``, without times, of the run's earlier evaluations, in order. They include
            those before a resumption.
        samples: the samples of all splits, with the keys that the hook ``samples`` documents.
    """

    updates: int
    metrics: Mapping[str, float]
    earlier: tuple[tuple[int, Mapping[str, float]], ...]
    samples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The end of a run.

    Attributes:
        status: ``finished``, ``stopped`` (early, at the request of a callback or of the settings), ``failed`` or
            ``interrupted``.
        reason: why the run stopped or failed, in one line; else ``""``.
        updates: number of updates in the weights.
        checksum: 64-bit checksum of the master weights; 0 if the run failed before it knew them.
        run_dir: the run directory.
    """

    status: Status
    reason: str
    updates: int
    checksum: int
    run_dir: Path

"""Result of a finished run."""

from dataclasses import dataclass
from pathlib import Path

from esplug.evaluation.figures import Evaluation
from esplug.planning.placement import Plan


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run.

    Attributes:
        run_dir: directory of the run.
        evaluations: evaluations in order; empty without evaluation data.
        model: folder of the fine-tuned model; ``None`` if the run made no updates.
        checksum: 64-bit checksum of the final master weights.
        plan: number and kind of the engines.
        seconds: duration of the run.
    """

    run_dir: Path
    evaluations: list[Evaluation]
    model: Path | None
    checksum: int
    plan: Plan
    seconds: float

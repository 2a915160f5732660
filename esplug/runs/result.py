"""What a finished run returns."""

from dataclasses import dataclass
from pathlib import Path

from esplug.evaluation.figures import Evaluation
from esplug.planning.placement import Plan


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run did.

    Attributes:
        run_dir: where everything lies.
        evaluations: in order; empty without evaluation data.
        model: folder of the fine-tuned model; ``None`` where no update was asked for.
        checksum: 64-bit checksum of the final master weights.
        plan: the engines it ran on.
        seconds: from start to end.
    """

    run_dir: Path
    evaluations: list[Evaluation]
    model: Path | None
    checksum: int
    plan: Plan
    seconds: float

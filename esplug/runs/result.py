"""Result of a run, in memory and as ``results.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import revision_of
from esplug.config import RunConfig
from esplug.data.splits import EvaluationSplit
from esplug.errors import PluginError
from esplug.evaluation.figures import Evaluation
from esplug.evaluation.statistics import Estimate
from esplug.events import RunEnd, Status
from esplug.planning.placement import Plan
from esplug.plugins import find
from esplug.runs.directory import environment, reason_of
from esplug.runs.early_stopping import Stop


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        run_dir: directory of the run.
        evaluations: evaluations in order; empty without evaluation data.
        model: folder of the fine-tuned model; ``None`` if the run made no updates.
        checksum: 64-bit checksum of the final master weights.
        plan: number and kind of the engines.
        seconds: duration of the run.
        unchanged: why the updates left the weights as they were, and what to try; ``""`` if they moved them, or if
            the run made none.
        stopped: why the run stopped before ``num_iterations`` updates; ``None`` if it did not.
    """

    run_dir: Path
    evaluations: list[Evaluation]
    model: Path | None
    checksum: int
    plan: Plan
    seconds: float
    unchanged: str = ""
    stopped: Stop | None = None


def results(
    config: RunConfig,
    model: Path,
    checksum: int,
    plan: Plan,
    splits: Mapping[str, EvaluationSplit],
    evaluation: Evaluation,
    stopped: Stop | None = None,
    max_turns: int = 1,
) -> dict[str, Any]:
    """Return the content of ``results.json``: an evaluation's figures and everything needed to reproduce them.

    The weights with this checksum came from the folder ``model``. With 16-bit weights, the kind and number of engines
    can change rounding. ``stopped`` says why the run stops early after this evaluation.
    """
    return {
        "iteration": evaluation.iteration,
        **({"stopped": stopped.reason} if stopped else {}),
        "model": {
            "name": config.model_name,
            "checkpoint": config.checkpoint,
            "revision": revision_of(model),
            "weights_checksum": f"{checksum:016x}",
        },
        "task": _task(config),
        "sampling": {
            "n_samples": config.eval_n_samples,
            "temperature": config.eval_temperature,
            "top_p": config.eval_top_p,
            "max_tokens": config.max_tokens,
            "stop": config.stop,
            "seed": config.seed,
            "mini_batch_size": config.mini_batch_size,
            "dtype": config.dtype,
            **({"max_turns": max_turns} if max_turns > 1 else {}),
        },
        "engines": asdict(plan),
        "splits": {
            split.split: {
                "rows": len(split.rows),
                "answers": len(split.samples),
                "fingerprint": splits[split.split].fingerprint(),
                "passes": "correct, as the task says" if split.by_task else f"reward at least {config.max_reward:g}",
                "figures": _figures(split.figures),
            }
            for split in evaluation.splits
        },
        "average": _figures(evaluation.average),
        "seconds": round(evaluation.seconds, 3),
        "config": config.model_dump(exclude_none=True),
        "environment": environment(),
    }


def run_end(error: BaseException | None, stop: Stop | None, updates: int, checksum: int, run_dir: Path) -> RunEnd:
    """Return the record for callbacks of a run that ends with this error, or without one."""
    if error is not None:
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        return RunEnd(status, reason_of(error), updates, checksum, run_dir)
    return RunEnd("stopped" if stop else "finished", stop.reason if stop else "", updates, checksum, run_dir)


def _figures(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: {"mean": e.mean, "ci95_low": e.low, "ci95_high": e.high, "n": e.n} for name, e in figures.items()}


def _task(config: RunConfig) -> dict[str, Any]:
    try:
        plugin = find("task", config.task)
        source = {"distribution": plugin.distribution, "version": plugin.version}
    except PluginError:  # functions passed in Python have no distribution
        source = {}
    return {"name": config.task, **source, "options": config.task_options, "dataset": config.eval_dataset}

"""Run directories for tests, made in milliseconds with the writers that real runs use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header, Step
from esplug.config import RunConfig, make_config
from esplug.evaluation.figures import Evaluation, Sample, SplitEvaluation
from esplug.loggers.jsonl import JsonlLogger
from esplug.runs.directory import RunDirectory

CHECKSUM = 0xC0FFEE
ENVIRONMENT = {"python": "3.11.7", "cores": 2, "packages": {"esplug": "0.1.0"}}


def sample(index: int, reward: float, split: str = "held_out", **details: Any) -> Sample:
    """Make a graded answer; one of reward 1 is correct."""
    usual = {
        "prompt": f"What is {index} + {index}?",
        "target": str(2 * index),
        "output": f"It is {2 * index}.",
        "label": "correct" if reward == 1 else "wrong",
        "correct": reward == 1,
        "passed": reward == 1,
        "tokens": 5,
        "finished": True,
    }
    return Sample(split=split, index=index, sample=0, reward=reward, **(usual | details))


def evaluation(iteration: int, samples: Sequence[Sample], by_task: bool = True) -> Evaluation:
    """Make an evaluation from the samples of one split or several."""
    names = dict.fromkeys(each.split for each in samples)
    splits = [SplitEvaluation(name, [s for s in samples if s.split == name], by_task=by_task) for name in names]
    return Evaluation(iteration, splits, 2.0)


def metrics(iteration: int, **others: float) -> dict[str, float]:
    """Make the metrics of an iteration."""
    return {
        "train/reward/mean": 0.2 + 0.01 * iteration,
        "train/reward/min": 0.1,
        "train/reward/max": 0.3 + 0.01 * iteration,
        "train/reward/std": 0.02,
        "train/tokens/mean": 20.0,
        "train/tokens_per_second": 100.0,
        "train/rewards_failed": 0.0,
        "train/labels/correct": 0.25,
        "train/labels/wrong": 0.75,
        "train/sigma": 0.001,
        "train/alpha": 0.0005,
        "time/generate": 8.0,
        "time/grade_wait": 0.5,
        "time/switch": 1.0,
        "time/engine_generate": 6.0,
        "time/update": 1.5,
        "time/iteration": 10.0,
    } | others


def make_run(
    folder: Path,
    name: str = "run",
    *,
    done: int = 2,
    evaluations: Sequence[Evaluation] | None = None,
    status: str | None = "finished",
    base: int = 1,
    **settings: Any,
) -> RunDirectory:
    """Make a run with ``done`` iterations, and with an evaluation of four prompts before and after them.

    ``base`` is the checksum of the weights before the iterations; that of those after them is ``CHECKSUM``.
    """
    config: RunConfig = make_config(
        {"output_directory": str(folder), "experiment_name": name, "task": "sums", "model_name": "owner/tiny"},
        {"n_iterations": done} | settings,
    )
    run, logger = RunDirectory.create(config, ENVIRONMENT), JsonlLogger()
    logger.start(config, run.path, 0)
    if evaluations is None:
        before = [sample(i, float(i == 0), output=f"before {i}") for i in range(4)]
        after = [sample(i, float(i != 0), output=f"after {i}") for i in range(4)]
        evaluations = [evaluation(0, before), *([evaluation(done, after)] if done else [])]
    if config.n_iterations:
        with SeedLog.create(run.seed_log, Header(Base("owner/tiny", None, base), "float32", config.seed)) as log:
            for iteration in range(done):
                run.write_iteration(iteration, {"iteration": iteration, "metrics": metrics(iteration)})
                logger.log(iteration, metrics(iteration))
                log.append(Step(iteration, (0.5, -0.5), False, CHECKSUM))
    for each in evaluations:
        for split in each.splits:
            run.write_evaluation(split.split, each.iteration, split.record(each.iteration))
        logger.log(each.iteration, each.metrics())
        rule = "correct, as the task says" if each.splits[0].by_task else "reward at least 1"
        splits = {split.split: {"passes": rule} for split in each.splits}
        run.write_results(
            {"iteration": each.iteration, "splits": splits, "model": {"weights_checksum": f"{CHECKSUM:016x}"}}
        )
    if status:
        run.write_status(status)
    return run

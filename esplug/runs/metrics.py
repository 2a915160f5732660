"""Metrics and record of a training iteration."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, get_args

from esplug.checkpoints.seed_log_records import Step
from esplug.data.conversation import Ended
from esplug.engines.messages import Generation
from esplug.engines.usage import EngineUsage
from esplug.es.members import Member, mirrored_correlation
from esplug.es.update import FloatArray
from esplug.evaluation.figures import Sample
from esplug.events import IterationEnd
from esplug.rewards import Graded


@dataclass(frozen=True, slots=True)
class PopulationResult:
    """Rewards of a population on a batch.

    Attributes:
        rewards: float64[N, B]; reward of member n's answer to prompt b.
        graded: N lists of B grades.
        generations: N sets of B answers.
        generate_seconds: from the first prompt sent to the last answer received.
        grade_seconds: time spent waiting for grades after that.
    """

    rewards: FloatArray
    graded: list[list[Graded]]
    generations: list[Generation]
    generate_seconds: float
    grade_seconds: float

    @property
    def grades(self) -> list[Graded]:
        """All N x B grades."""
        return list(chain.from_iterable(self.graded))


@dataclass(frozen=True, slots=True)
class Iteration:
    """A training iteration, apart from the update that the seed log stores.

    Attributes:
        members: the N members.
        result: their rewards.
        utilities: float64[N]; the shaped rewards.
        began: start, in Unix seconds.
        seconds: from the start to the end of the update, which took ``update_seconds`` of them.
        samples: some of the answers (:mod:`esplug.runs.answers`).
    """

    members: Sequence[Member]
    result: PopulationResult
    utilities: FloatArray
    began: float
    seconds: float
    update_seconds: float
    samples: Sequence[Sample] = ()

    @property
    def phases(self) -> dict[str, float]:
        """The driver's phases, in order, with their seconds."""
        waited = self.result.grade_seconds
        generated = self.seconds - self.update_seconds - waited
        return {"generate": generated, "wait for grades": waited, "update": self.update_seconds}


def train_metrics(result: PopulationResult, n_engines: int, *, antithetic: bool) -> dict[str, float]:
    """Return a population's metrics.

    ``train/reward/*`` are statistics of the N members' mean rewards. ``time/*`` are seconds; ``time/switch`` and
    ``time/engine_generate`` are averages over the engines.
    """
    means, grades = result.rewards.mean(axis=1), result.grades
    completions = [completion for generation in result.generations for completion in generation.completions]
    tokens = sum(completion.tokens for completion in completions)
    labels = Counter(grade.reward.label for grade in grades if grade.reward.label)
    metrics = {
        "train/reward/mean": float(means.mean()),
        "train/reward/min": float(means.min()),
        "train/reward/max": float(means.max()),
        "train/reward/std": float(means.std()),
        "train/tokens/mean": tokens / len(completions),
        "train/finished": sum(completion.finished for completion in completions) / len(completions),
        "train/tokens_per_second": tokens / result.generate_seconds,
        "train/rewards_failed": float(sum(grade.failed for grade in grades)),
        "time/generate": result.generate_seconds,
        "time/grade_wait": result.grade_seconds,
        "time/switch": sum(generation.switch_seconds for generation in result.generations) / n_engines,
        "time/engine_generate": sum(generation.generate_seconds for generation in result.generations) / n_engines,
    }
    if conversations := [each for generation in result.generations for each in generation.conversations]:
        endings = Counter(each.ended for each in conversations)
        metrics["train/turns/mean"] = sum(each.turns for each in conversations) / len(conversations)
        metrics |= {f"train/ended/{name}": endings[name] / len(conversations) for name in get_args(Ended)}
    metrics |= {f"train/labels/{label}": count / len(grades) for label, count in sorted(labels.items())}
    for name in sorted({name for grade in grades for name in grade.reward.metrics}):
        values = [grade.reward.metrics[name] for grade in grades if name in grade.reward.metrics]
        metrics[f"train/metrics/{name}/mean"] = sum(values) / len(values)
    if antithetic:
        metrics["train/mirrored_correlation"] = mirrored_correlation(result.rewards)
    return metrics


def iteration_end(step: Step, iteration: Iteration, metrics: Mapping[str, float]) -> IterationEnd:
    """Return the record for callbacks."""
    arrays = iteration.result.rewards.copy(), iteration.utilities.copy()
    for array in arrays:
        array.flags.writeable = False
    return IterationEnd(step.iteration, *arrays, step.coefficients, step.checksum, MappingProxyType(dict(metrics)))


def usage_metrics(driver_memory: int, engines: Sequence[EngineUsage]) -> dict[str, float]:
    """Return metrics of the hardware: memory in GiB, utilization in percent. Whatever is unknown is left out.

    ``system/engine_memory`` is the sum over the engines. The metrics of GPUs are averages over the GPUs of the run, of
    their largest memory and of their utilization.
    """
    gpus = {uuid: gpu for engine in engines for uuid, gpu in engine.gpus.items()}.values()  # engines may share one
    shares = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    metrics = {"system/driver_memory": driver_memory / 2**30}
    if engines:
        metrics["system/engine_memory"] = sum(engine.host_memory for engine in engines) / 2**30
    if gpus:
        metrics["system/gpu_memory"] = sum(gpu.memory for gpu in gpus) / len(gpus) / 2**30
    if shares:
        metrics["system/gpu_utilization"] = sum(shares) / len(shares)
    return metrics


def iteration_record(step: Step, iteration: Iteration, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return the record for ``train-output/``. Its seeds and coefficients suffice to replay the iteration.

    It says which engines answered for each member, and on which machines.
    """
    result = iteration.result
    columns = iteration.members, iteration.utilities, step.coefficients, result.rewards, result.generations
    return {
        "iteration": step.iteration,
        "checksum": f"{step.checksum:016x}",
        "members": [
            {
                "index": member.index,
                "seed": member.seed,
                "sign": member.sign,
                "reward": float(rewards.mean()),
                "utility": float(utility),
                "coefficient": coefficient,
                "engines": [
                    {"engine": engine, "node": node}
                    for engine, node in sorted({(work.engine, work.node) for work in generation.work})
                ],
                "switch_seconds": generation.switch_seconds,
                "generate_seconds": generation.generate_seconds,
                "tokens": [completion.tokens for completion in generation.completions],
                "rewards": rewards.tolist(),
            }
            for member, utility, coefficient, rewards, generation in zip(*columns, strict=True)
        ],
        "metrics": metrics,
        "samples": [sample.row() for sample in iteration.samples],
    }

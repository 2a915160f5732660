"""Comparison of two models on the same prompts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esplug.config import RunConfig
from esplug.errors import UserError
from esplug.evaluation.figures import Evaluation
from esplug.evaluation.statistics import Comparison, Estimate, average, compare
from esplug.runs.directory import claim
from esplug.utils.json_files import write_json

if TYPE_CHECKING:
    from esplug.runs.result import RunResult


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """Two models, evaluated with the same settings. ``folder`` holds both runs and ``comparison.json``."""

    folder: Path
    models: tuple[str, str]
    runs: tuple["RunResult", "RunResult"]
    splits: list["SplitComparison"]


@dataclass(frozen=True, slots=True)
class SplitComparison:
    """A split's figures under two models, and the changes of ``pass@<k>`` and ``reward`` from ``a`` to ``b``."""

    split: str
    a: dict[str, Estimate]
    b: dict[str, Estimate]
    changes: dict[str, Comparison]


def compare_evaluations(a: Evaluation, b: Evaluation) -> list[SplitComparison]:
    """Compare two evaluations of the same splits, row by row."""
    return [
        SplitComparison(
            one.split,
            one.figures,
            two.figures,
            {f"pass@{k}": compare(one.passes(k), two.passes(k)) for k in one.pass_k}
            | {"reward": compare(one.rewards, two.rewards)},
        )
        for one, two in zip(a.splits, b.splits, strict=True)
    ]


def average_changes(comparisons: Sequence[SplitComparison]) -> dict[str, Estimate]:
    """Average each figure's change over the splits, with equal weights."""
    return {
        figure: average([each.changes[figure].difference for each in comparisons]) for figure in comparisons[0].changes
    }


def compare_models(
    config: RunConfig, models: tuple[str, str], evaluate: Callable[[RunConfig], "RunResult"]
) -> ModelComparison:
    """Evaluate two models one after the other and write ``comparison.json`` beside their runs ``A`` and ``B``.

    Raises:
        UserError: ``--experiment-name`` exists, or an evaluation found an error. Empty folders are removed.
    """
    base = Path(config.output_directory).expanduser()
    new = [path for path in (base, *base.parents) if not path.exists()]
    folder = claim(config, f"compare-{config.task}-{'-'.join(Path(model).name for model in models)}"[:180])

    def run(name: str, model: str, n_engines: int | None) -> "RunResult":
        own = {"model_name": model, "output_directory": str(folder), "experiment_name": name}
        return evaluate(config.model_copy(update=own | {"n_vllm_engines": n_engines}))

    try:
        first = run("A", models[0], config.n_vllm_engines)
        runs = first, run("B", models[1], first.plan.n_engines)  # the same number, whatever memory is free then
    except UserError:
        for path in (folder, *new):
            with suppress(OSError):  # not empty: something was evaluated
                path.rmdir()
        raise
    splits = compare_evaluations(*(each.evaluations[-1] for each in runs))
    record: dict[str, Any] = {
        name: {"model": model, "weights_checksum": f"{result.checksum:016x}"}
        for name, model, result in zip("AB", models, runs, strict=True)
    }
    record["average"] = {figure: asdict(change) for figure, change in average_changes(splits).items()}
    record["splits"] = {each.split: asdict(each) for each in splits}
    write_json(folder / "comparison.json", record, indent=2)
    return ModelComparison(folder, models, runs, splits)

"""Tables on the console: the summaries of a run, an evaluation or a comparison that is done."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from esplug.evaluation.figures import Evaluation
from esplug.evaluation.statistics import Estimate
from esplug.runs.compare import ModelComparison, SplitComparison, average_changes, compare_evaluations
from esplug.runs.result import RunResult
from esplug.runs.summary import duration
from esplug.utils.console import get_console, say


def print_summary(result: RunResult, *, tables: bool = True) -> None:
    """Print the splits before and after training, with intervals, and the paths of the results; last, details.

    Without ``tables``, print only the run's directory. A run that stopped early, or whose weights did not change, says
    so in any case.
    """
    if tables:
        _print_evaluations(result)
    say(f"run directory  {result.run_dir}")
    if tables:
        if result.model:
            say(f"model          {result.model}")
        say(f"time           {duration(result.seconds)}")
        say(f"details        weights checksum {result.checksum:016x}", style="dim")
    if result.stopped:
        say(f"stopped early: {result.stopped.reason}")
    if result.unchanged:
        say(f"nothing was learnt: weights unchanged, as {result.unchanged}", style="bold red")


def _print_evaluations(result: RunResult) -> None:
    evaluations = result.evaluations
    if len(evaluations) > 1 and not result.unchanged:
        first, last = evaluations[0], evaluations[-1]
        print_comparison(compare_evaluations(first, last), ("before", f"after {last.iteration}"))
    elif evaluations:
        print_evaluation(evaluations[-1])
    if evaluations:
        _print_notes(evaluations[-1])


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the figures of every split, one line each, without those that equal pass@1."""
    table = _table("split", "n", "figure", "mean", "95% interval")
    groups = [(split.split, str(len(split.rows)), split.figures) for split in evaluation.splits]
    if len(evaluation.splits) > 1:
        groups.append(("average", "", evaluation.average))
    for split, n, figures in groups:
        head = (escape(split), n)
        for name, figure in figures.items():
            repeats = figure == figures["pass@1"] and name in ("reward", "labels/correct")
            if not repeats:
                mean, interval = _with_interval(figure).split(" ", maxsplit=1)
                shown = escape(name.removeprefix("labels/").removeprefix("metrics/"))
                table.add_row(*head, shown, mean, interval)
                head = ("", "")
    get_console().print(table)


def print_comparison(comparisons: Sequence[SplitComparison], names: tuple[str, str]) -> None:
    """Print the figures of two evaluations, their difference, and how many prompts went up and down."""
    table = _table("split", "n", "figure", "", "mean \\[95% interval]", "prompts")
    for each in comparisons:
        split = escape(each.split)
        rows = {name: (each.a[name], each.b[name], change) for name, change in each.changes.items()}
        for figure, change in each.changes.items():
            if figure == "pass@1" or rows[figure] != rows["pass@1"]:
                n = str(change.difference.n) if split else ""
                flips = f"{len(change.gained)} up, {len(change.lost)} down, p {change.p_value:.2g}"
                table.add_row(split, n, figure, names[0], _with_interval(each.a[figure]))
                table.add_row("", "", "", names[1], _with_interval(each.b[figure]))
                table.add_row("", "", "", "change", _with_interval(change.difference, "+"), flips)
                split = ""
    if len(comparisons) > 1:
        split, overall = "average", average_changes(comparisons)
        for figure, mean in overall.items():
            if figure == "pass@1" or mean != overall["pass@1"]:
                table.add_row(split, "", figure, "change", _with_interval(mean, "+"))
                split = ""
    get_console().print(table)


def print_model_comparison(comparison: ModelComparison) -> None:
    """Print the result of `esplug eval --compare`."""
    print_comparison(comparison.splits, ("A", "B"))
    _print_notes(comparison.runs[0].evaluations[-1])
    for place, model in zip("AB", comparison.models, strict=True):
        say(f"{place}              {model}")
    say(f"run directory  {comparison.folder}")
    weights = [
        f"{place}: weights checksum {run.checksum:016x}" for place, run in zip("AB", comparison.runs, strict=True)
    ]
    say(f"details        {'; '.join(weights)}", style="dim")


def _print_notes(evaluation: Evaluation) -> None:
    rule = "the task says it is correct" if evaluation.splits[0].by_task else "its reward reaches --max-reward"
    get_console().print(f"n counts prompts. An answer passes where {rule}.", markup=False, style="dim")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in columns:  # on a narrow terminal names fold, but figures do not
        table.add_column(name, overflow="fold", no_wrap=name not in ("split", "figure"))
    return table


def _with_interval(estimate: Estimate, sign: str = "") -> str:
    digits = 1 if max(abs(estimate.mean), abs(estimate.high)) >= 10 else 3
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]".replace("[", r"\[")

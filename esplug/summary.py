"""What a run says when it is done."""

from typing import TYPE_CHECKING

from esplug.console import get_console
from esplug.evaluation import Estimate, Evaluation, paired_difference

if TYPE_CHECKING:
    from esplug.trainer import RunResult


def print_summary(result: "RunResult") -> None:
    """Print the splits before and after, with intervals, and where everything lies."""
    from rich.table import Table

    console = get_console()
    evaluations = result.evaluations
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        for before, after in zip(first.splits, last.splits, strict=True):
            n, columns = len(after.samples), _columns(first, last)
            table = Table(
                "", *columns, title=f"{after.split}, {n} prompts, 95% intervals", box=None, title_justify="left"
            )
            rows = (
                ("pass@1", before.pass_at_1, after.pass_at_1, before.passes, after.passes),
                ("reward", before.reward, after.reward, before.rewards, after.rewards),
            )
            for figure, old, new, old_values, new_values in rows:
                cells = [_show(new)]
                if first is not last:
                    cells = [_show(old), _show(new), _show(paired_difference(old_values, new_values), "+")]
                table.add_row(figure, *cells)
            console.print(table)
    console.print(f"run directory  {result.run_dir}", markup=False, soft_wrap=True)
    if result.model:
        console.print(f"model          {result.model}", markup=False, soft_wrap=True)
    console.print(f"weights        checksum {result.checksum:016x}", markup=False)
    console.print(f"time           {result.seconds:.0f} s", markup=False)


def _show(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (f"{value:{sign}.3f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]".replace("[", r"\[")


def _columns(first: Evaluation, last: Evaluation) -> list[str]:
    if first is last:
        return ["mean"]
    return [f"iteration {first.iteration}", f"iteration {last.iteration}", "change, same prompts"]

"""What a run says when it is done."""

from typing import TYPE_CHECKING

from esplug.console import get_console
from esplug.evaluation import Evaluation, paired_difference

if TYPE_CHECKING:
    from esplug.trainer import RunResult


def print_summary(result: "RunResult") -> None:
    """Print the splits before and after, with intervals, and where everything lies."""
    from rich.table import Table

    console = get_console()
    evaluations = result.evaluations
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        table = Table(title="evaluation, with 95% intervals")
        for column in ("split", "n", "figure", *_columns(first, last)):
            table.add_column(column)
        for before, after in zip(first.splits, last.splits, strict=True):
            rows = (
                ("pass@1", before.pass_at_1, after.pass_at_1, before.passes, after.passes),
                ("reward", before.reward, after.reward, before.rewards, after.rewards),
            )
            for figure, old, new, old_values, new_values in rows:
                cells = [str(new)]
                if first is not last:
                    change = paired_difference(old_values, new_values)
                    cells = [
                        str(old),
                        str(new),
                        f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]",
                    ]
                table.add_row(after.split, str(new.n), figure, *cells)
        console.print(table)
    console.print(f"run directory  {result.run_dir}", markup=False, soft_wrap=True)
    if result.model:
        console.print(f"model          {result.model}", markup=False, soft_wrap=True)
    console.print(f"weights        checksum {result.checksum:016x}", markup=False)
    console.print(f"time           {result.seconds:.0f} s", markup=False)


def _columns(first: Evaluation, last: Evaluation) -> list[str]:
    if first is last:
        return ["mean"]
    return [f"iteration {first.iteration}", f"iteration {last.iteration}", "change on the same prompts"]

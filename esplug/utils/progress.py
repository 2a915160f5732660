"""Progress bars on a terminal: members of the iteration, and iterations of the run."""

from contextlib import ExitStack
from typing import Any, Self

from esplug.utils.console import get_console


class LiveProgress:
    """Two bars below the log lines; none if standard output is not a terminal, or ``enabled`` is false.

    ``done`` of the run's iterations were made by an earlier process.
    """

    def __init__(self, iterations: int, done: int = 0, *, enabled: bool) -> None:
        self._iterations, self._done = iterations, done
        self._enabled = enabled and get_console().is_terminal
        self._bars: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._enabled:
            from rich import progress

            times = (progress.TimeElapsedColumn(), progress.TimeRemainingColumn())
            columns = ("{task.description:<22}", progress.BarColumn(), progress.MofNCompleteColumn(), *times)
            bars = progress.Progress(*columns, console=get_console(), transient=True)
            self._bars = self._stack.enter_context(bars)
            total = self._iterations
            self._run = self._bars.add_task("iterations", total=total, completed=self._done, visible=total > 0)
            self._step = self._bars.add_task("", total=1, visible=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._bars = None

    def begin(self, what: str, total: int) -> None:
        """Start counting a phase: the members of an iteration, or the batches of an evaluation."""
        if self._bars:
            self._bars.reset(self._step, description=what, total=total, visible=True)

    def advance(self) -> None:
        """Count one member or batch."""
        if self._bars:
            self._bars.advance(self._step)

    def iteration_done(self) -> None:
        """Count one iteration."""
        if self._bars:
            self._bars.advance(self._run)

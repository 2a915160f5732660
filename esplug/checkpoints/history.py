"""History of a run's updates, from which a new engine catches up with the others."""

from collections.abc import Callable
from dataclasses import dataclass

from esplug.checkpoints.seed_log_records import Step


@dataclass(frozen=True, slots=True)
class Saved:
    """A full checkpoint of the master weights."""

    iteration: int  # number of updates
    folder: str  # skipped on nodes that do not have it
    checksum: int  # of the master weights, from the seed log


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Everything that an engine needs to get from the base model to the run's current weights."""

    run_seed: int
    steps: tuple[Step, ...] = ()  # all updates so far
    saved: tuple[Saved, ...] = ()  # checkpoints to start from, newest first; damaged ones are skipped


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Result of an engine's catching up."""

    base: int  # checksum of the base model's master weights
    checksum: int  # of the current master weights
    replayed: int = 0  # number of updates that were computed again
    damaged: tuple[tuple[str, str], ...] = ()  # folders of checkpoints that could not be used, each with the reason
    undefined: tuple[str, ...] = ()  # names of the base model's tensors that hold NaN or infinity
    unread: tuple[str, ...] = ()  # names of the checkpoint's tensors that the model does not use
    decoder: str = ""  # who decodes the engine's answers, and why


class History:
    """The updates of a run so far."""

    def __init__(
        self,
        run_seed: int,
        base: int | None = None,  # checksum of the base model's master weights, once an engine has loaded them
        steps: tuple[Step, ...] = (),  # updates made by earlier processes of the run
        saved: Callable[[], list[tuple[int, str]]] = list,  # returns (iteration, folder) of checkpoints, newest first
    ) -> None:
        self.base, self.steps, self.run_seed = base, list(steps), run_seed
        self._saved = saved

    @property
    def checksum(self) -> int | None:
        """Checksum that the current master weights must have."""
        return self.steps[-1].checksum if self.steps else self.base

    def append(self, step: Step) -> None:
        """Add an update that all engines have made."""
        self.steps.append(step)

    def catch_up(self) -> CatchUp:
        """Return what a new engine needs to catch up."""
        saved = (
            Saved(iteration, folder, self.steps[iteration - 1].checksum)
            for iteration, folder in self._saved()
            if 0 < iteration <= len(self.steps)
        )
        return CatchUp(self.run_seed, tuple(self.steps), tuple(saved))

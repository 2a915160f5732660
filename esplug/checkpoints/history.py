"""History of a run's updates, from which a new engine catches up with the others."""

from collections.abc import Callable
from dataclasses import dataclass

from esplug.checkpoints.seed_log_records import Step


@dataclass(frozen=True, slots=True)
class Saved:
    """A full checkpoint of the master weights.

    Attributes:
        iteration: number of updates.
        folder: the checkpoint's folder, on a path that the engines' machines share.
        checksum: 64-bit checksum of the master weights, from the seed log.
    """

    iteration: int
    folder: str
    checksum: int


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Everything that an engine needs to get from the base model to the run's current weights.

    Attributes:
        run_seed: seed from which member seeds are derived.
        steps: all updates so far.
        saved: checkpoints to start from, newest first. Damaged ones are skipped.
    """

    run_seed: int
    steps: tuple[Step, ...] = ()
    saved: tuple[Saved, ...] = ()


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Result of an engine's catching up.

    Attributes:
        base: checksum of the base model's master weights.
        checksum: checksum of the current master weights.
        replayed: number of updates that were computed again.
        damaged: folders of the checkpoints that could not be used, each with the reason.
        undefined: names of the base model's tensors that hold NaN or infinity.
    """

    base: int
    checksum: int
    replayed: int = 0
    damaged: tuple[tuple[str, str], ...] = ()
    undefined: tuple[str, ...] = ()


class History:
    """The updates of a run so far.

    Args:
        run_seed: seed from which member seeds are derived.
        base: checksum of the base model's master weights; ``None`` until an engine has loaded them.
        steps: updates made by earlier processes of the run.
        saved: returns the full checkpoints, newest first, as ``(iteration, folder)``.
    """

    def __init__(
        self,
        run_seed: int,
        base: int | None = None,
        steps: tuple[Step, ...] = (),
        saved: Callable[[], list[tuple[int, str]]] = list,
    ) -> None:
        self.base, self.steps = base, list(steps)
        self._run_seed, self._saved = run_seed, saved

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
        return CatchUp(self._run_seed, tuple(self.steps), tuple(saved))

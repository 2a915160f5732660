"""What has moved a run's weights so far: from it an engine that is new catches up with the others."""

from collections.abc import Callable
from dataclasses import dataclass

from esplug.checkpoints.seed_log_records import Step


@dataclass(frozen=True, slots=True)
class Saved:
    """Master weights on disk: the folder of a full checkpoint, and the checksum that they must have.

    Attributes:
        iteration: updates they have had.
        folder: visible to the engines' machines.
        checksum: 64-bit checksum of the master weights, from the seed log.
    """

    iteration: int
    folder: str
    checksum: int


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How to get from the base model to the run's present weights.

    Attributes:
        run_seed: gives the members' seeds.
        steps: all updates so far.
        saved: weights to start from, best first; those that prove damaged are passed over.
    """

    run_seed: int
    steps: tuple[Step, ...] = ()
    saved: tuple[Saved, ...] = ()


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Where an engine has got to.

    Attributes:
        base: checksum of the base model's master weights.
        checksum: of the master weights now.
        replayed: updates that were computed again.
        damaged: the folders of saved weights that could not be used, each with the reason.
        undefined: the base model's tensors that hold NaN or infinity.
    """

    base: int
    checksum: int
    replayed: int = 0
    damaged: tuple[tuple[str, str], ...] = ()
    undefined: tuple[str, ...] = ()


class History:
    """The updates of a run so far.

    Args:
        run_seed: gives the members' seeds.
        base: checksum of the base model's master weights; ``None`` while no engine has loaded them.
        steps: updates made by earlier processes of the run.
        saved: lists full checkpoints, newest first, as ``(iteration, folder)``.
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
        """Checksum that the master weights must have now."""
        return self.steps[-1].checksum if self.steps else self.base

    def append(self, step: Step) -> None:
        """Note an update that all engines have made."""
        self.steps.append(step)

    def catch_up(self) -> CatchUp:
        """Say how to get here from the base model."""
        saved = (
            Saved(iteration, folder, self.steps[iteration - 1].checksum)
            for iteration, folder in self._saved()
            if 0 < iteration <= len(self.steps)
        )
        return CatchUp(self._run_seed, tuple(self.steps), tuple(saved))

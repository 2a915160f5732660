"""Catch-up: brings the master weights of a new engine to the run's current ones."""
# ruff: noqa: D102

from pathlib import Path
from typing import Protocol

from esplug.checkpoints.history import CatchUp, CaughtUp, Saved
from esplug.checkpoints.seed_log_records import movement
from esplug.errors import UserError
from esplug.weights.rank_group import RankGroup


class Master(Protocol):
    """What catch-up needs of :class:`esplug.weights.master.MasterWeights`."""

    ranks: RankGroup

    def checksum(self) -> int: ...
    def undefined(self) -> list[str]: ...
    def overwrite(self, folder: Path) -> None: ...
    def update(self, seeds: list[int], coefficients: list[float]) -> None: ...


def catch_up(master: Master, base: Path, target: CatchUp) -> CaughtUp:
    """Bring ``master``, just loaded from the model folder ``base``, to the weights of ``target``.

    Starts from the first saved weights with the right checksum, or from the base model if there are none, and
    repeats the updates that came after.
    """
    base_checksum, undefined = master.checksum(), tuple(master.undefined())
    checksum, done, damaged = base_checksum, 0, []
    for saved in target.saved:
        reason = _restore(master, saved)
        if not reason:
            checksum, done = saved.checksum, saved.iteration
            break
        damaged.append((saved.folder, reason))
    if damaged and not done:
        master.overwrite(base)
    replayed = 0
    for steps in range(done + 1, len(target.steps) + 1):
        seeds, coefficients = movement(target.steps[:steps], target.run_seed)
        master.update(seeds, coefficients)
        replayed += bool(seeds)
    if replayed:
        checksum = master.checksum()
    return CaughtUp(base_checksum, checksum, replayed, tuple(damaged), undefined)


def _restore(master: Master, saved: Saved) -> str:
    """Overwrite the master with saved weights. Return why that failed, on this rank or another, or nothing."""
    reason = ""
    try:
        master.overwrite(Path(saved.folder))
    except UserError as error:
        reason = str(error)
    if master.ranks.sums([bool(reason)]) != [0]:
        return reason or "another process could not read it"
    checksum = master.checksum()
    if checksum != saved.checksum:
        return f"its weights have checksum {checksum:016x} instead of {saved.checksum:016x}"
    return ""

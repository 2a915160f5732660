"""Starting weights of a run: how engines reach them, checks of what engines report, and the new seed log."""

from pathlib import Path

from esplug.checkpoints.base_model import revision_of
from esplug.checkpoints.folders import newest_first, rename_aside
from esplug.checkpoints.history import CaughtUp, History
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header
from esplug.config import RunConfig
from esplug.errors import RunError, UserError
from esplug.runs.directory import RunDirectory
from esplug.utils.console import get_console


def starting_history(config: RunConfig, run_dir: RunDirectory, log: SeedLog | None) -> History:
    """Return the updates that engines replay to catch up with a run; ``log`` is ``None`` for a new run."""
    return History(
        config.seed,
        log.header.base.weights_checksum if log else None,
        tuple(log.steps) if log else (),
        lambda: [(iteration, str(folder.absolute())) for iteration, folder in newest_first(run_dir.checkpoints)],
    )


def check_starting_weights(found: CaughtUp, history: History, model: Path, log: SeedLog | None) -> None:
    """Check the weights that engines report after their start, and rename checkpoints that they found damaged.

    Raises:
        UserError: the model holds NaN or infinity, or is not the one that the run started from.
        RunError: replaying the run's updates gave other weights.
    """
    if found.undefined:
        raise UserError(
            f"{model}: {len(found.undefined)} tensors hold NaN or infinity, {found.undefined[0]} first; "
            "fetch or train the model again"
        )
    for folder, reason in found.damaged:
        aside = rename_aside(Path(folder), "damaged").name
        get_console().print(
            f"skipped a checkpoint: {folder}: {reason}; renamed to {aside}", markup=False, soft_wrap=True
        )
    base = log.header.base if log else None
    if base and found.base != base.weights_checksum:
        raise UserError(
            f"{model}: not the model that the run started from ({base.name}): its weights have checksum "
            f"{found.base:016x}, the run's had {base.weights_checksum:016x}; name the right one with --model-name"
        )
    if found.checksum != (history.checksum or found.base):
        raise RunError(
            f"replaying {found.replayed} updates gave weights with checksum {found.checksum:016x} instead of "
            f"{history.checksum:016x}; was the run made with another version of esplug?"
        )


def create_seed_log(config: RunConfig, run_dir: RunDirectory, model: Path, checksum: int) -> SeedLog:
    """Create the seed log of a new run, whose base model's weights have this checksum."""
    base = Base(config.checkpoint or config.model_name, revision_of(model), checksum)
    settings = config.model_dump(exclude_none=True)
    return SeedLog.create(run_dir.seed_log, Header(base, config.master_dtype, config.seed, settings, config.rank))

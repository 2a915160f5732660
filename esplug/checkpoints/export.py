"""Export: writes the model of any iteration from the seed log and its base model, without vLLM, Ray or a GPU.

The weights' checksum is verified before the folder appears. :mod:`esplug.checkpoints.replay` computes the weights.
"""

import os
from contextlib import ExitStack
from pathlib import Path

from esplug.checkpoints.replay import Progress
from esplug.checkpoints.replayed_model import Exported, write_model
from esplug.checkpoints.seed_log import read
from esplug.checkpoints.seed_log_format import FILE_NAME
from esplug.checkpoints.starting_model import base_of
from esplug.checkpoints.tensor_files import DTYPES, Dtype
from esplug.errors import UserError


def export(
    log_or_run: Path,
    out: Path,
    *,
    base: str | Path | None = None,
    iteration: int | None = None,
    dtype: Dtype | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the model of an iteration as a folder that ``transformers`` and vLLM can load.

    Args:
        log_or_run: a seed log, or the directory of a run, whose evaluations then go into the model card.
        out: the folder to write. It appears complete or not at all.
        base: the model that the run started from (:mod:`esplug.checkpoints.starting_model`), if it has moved.
        iteration: number of updates to replay; 0 gives the base model, ``None`` all updates.
        dtype: type of the floating-point tensors; by default that of the base model.
        threads: number of threads; by default one per core.
        progress: called with the progress.

    Raises:
        UserError: ``out`` exists or cannot be written, the log cannot be read or has fewer iterations, or the
            base model is missing, damaged or not the one in the log.
        RunError: the replayed weights do not have the log's checksum.
    """
    log, run = (log_or_run / FILE_NAME, log_or_run) if log_or_run.is_dir() else (log_or_run, None)
    if run and not log.is_file():
        raise UserError(f"{run}: no {FILE_NAME} there; give the directory of a training run, or a seed log")
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if os.path.lexists(out):
        raise UserError(f"--out {out}: exists; choose another folder, or remove it")
    if iteration is not None and iteration < 0:
        raise UserError(f"--iteration {iteration}: must be 0 or more")
    recorded = read(log, iteration)
    if iteration is not None and iteration > len(recorded.steps):
        raise UserError(f"--iteration {iteration}: there are only {len(recorded.steps)} iterations in {log}")
    with ExitStack() as stack:
        folder = base_of(log, None if base is None else str(base), out.absolute().parent, stack)
        return write_model(recorded, log, folder, out, run=run, dtype=dtype, threads=threads, progress=progress)

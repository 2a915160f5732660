"""Making the model of any iteration from its base and the seed log, without vLLM, Ray or a GPU.

The checksum in the log proves the weights before the folder appears; :mod:`esplug.replay` says how they come about.
"""

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from esplug.checkpoint import save_model
from esplug.errors import RunError, UserError
from esplug.model_card import model_card
from esplug.placement import usable_cores
from esplug.replay import Progress, Replay
from esplug.seed_log import FILE_NAME, Header, read
from esplug.starting_model import base_of
from esplug.stored_tensors import DTYPES, Dtype, create_files, declare_dtype, stored_tensors, written_bytes


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: the model.
        iteration: updates that it has had.
        checksum: 64-bit checksum of its master weights, as the log has it.
        nbytes: size of the weight files.
        torn: whether a torn last record of the log was dropped.
    """

    folder: Path
    iteration: int
    checksum: int
    nbytes: int
    torn: bool


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
    """Write the model of an iteration as a folder that ``transformers`` and vLLM open as it is.

    Args:
        log_or_run: a seed log, or the directory of a run, whose evaluations then go into the model card.
        out: the folder to be made; it appears complete or not at all.
        base: what the run started from, if the log's name of it is out of date: a folder, a Hugging Face id, or
            whatever else :mod:`esplug.starting_model` knows.
        iteration: updates to make, 0 giving the base model itself; all there are by default.
        dtype: type of the floating-point tensors, by default the base model's own.
        threads: how many compute; by default one for each core.
        progress: told what is going on.

    Raises:
        UserError: ``out`` exists or cannot be written, the log cannot be read or has fewer iterations, or the
            base model is missing, damaged or another one.
        RunError: the replayed weights are not those of the run.
    """
    log, run = (log_or_run / FILE_NAME, log_or_run) if log_or_run.is_dir() else (log_or_run, None)
    if run and not log.is_file():
        raise UserError(f"{run}: no {FILE_NAME} there; name the directory of a training run, or a seed log")
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if os.path.lexists(out):
        raise UserError(f"--out {out}: exists; choose another folder, or remove it")
    if iteration is not None and iteration < 0:
        raise UserError(f"--iteration {iteration}: must be 0 or more")
    recorded = read(log, iteration)
    header, steps = recorded.header, recorded.steps
    if iteration is not None and iteration > len(steps):
        raise UserError(f"--iteration {iteration}: there are only {len(steps)} iterations in {log}")
    expected = steps[-1].checksum if steps else header.base.weights_checksum
    with ExitStack() as stack:
        folder = base_of(log, None if base is None else str(base), out.absolute().parent, stack)
        source = stored_tensors(folder, stack)
        replay = Replay(header, threads or len(usable_cores()), progress)
        _check_base(replay.run("checking the base", source, ()), header, folder)
        nbytes = sum(written_bytes(tensor, dtype) for tensor in source)
        _check_space(out, nbytes)

        def write(target: Path) -> None:
            if dtype:
                declare_dtype(target / "config.json", dtype)
            card = model_card(header, len(steps), expected, run, folder / "README.md", dtype)
            (target / "README.md").write_text(card, encoding="utf-8")
            with ExitStack() as files:
                places = create_files(target, source, dtype, files)
                found = replay.run("replaying", source, steps, places)
            if found != expected:
                raise RunError(
                    f"{log}: replaying {len(steps)} iterations gave weights with checksum {found:016x} instead of "
                    f"{expected:016x}, so nothing was written; was the run made with another version of esplug?"
                )

        try:
            save_model(write, folder, out)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return Exported(out, len(steps), expected, nbytes, recorded.torn)


def _check_base(found: int, header: Header, folder: Path) -> None:
    if found != header.base.weights_checksum:
        raise UserError(
            f"{folder}: not the model that the run started from ({header.base.name}): its weights have checksum "
            f"{found:016x}, the log says {header.base.weights_checksum:016x}; name the right one with --base"
        )


def _check_space(out: Path, wanted: int) -> None:
    """See early whether the disk has room.

    Raises:
        UserError: it has not.
    """
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < wanted:
        raise UserError(f"--out {out}: needs {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make room")

"""Replayed models: writes the model of a seed log and its base model, after verifying its checksum."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.checkpoints.folders import save_model
from esplug.checkpoints.model_card import model_card
from esplug.checkpoints.replay import Progress, Replay
from esplug.checkpoints.seed_log_records import Header, Recorded
from esplug.checkpoints.tensor_files import Dtype, StoredTensor, create_files, stored_tensors, written_bytes
from esplug.errors import RunError, UserError
from esplug.utils.cores import usable_cores


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported model.

    Attributes:
        folder: the model folder.
        iteration: number of updates.
        checksum: 64-bit checksum of the master weights, as in the log.
        nbytes: size of the weights, in bytes.
        torn: whether a torn last record of the log was dropped.
    """

    folder: Path
    iteration: int
    checksum: int
    nbytes: int
    torn: bool


def write_model(
    recorded: Recorded,
    log: Path,
    base: Path,
    out: Path,
    *,
    run: Path | None = None,
    dtype: Dtype | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Replay the recorded steps on the folder ``base``, and write the result as the model folder ``out``.

    ``log`` is for error messages; :func:`esplug.checkpoints.export.export` describes the other arguments.

    Raises:
        UserError: ``out`` cannot be written, or the base model is not the one in the log.
        RunError: the replayed weights do not have the log's checksum.
    """
    header, steps = recorded.header, recorded.steps
    expected = steps[-1].checksum if steps else header.base.weights_checksum
    with ExitStack() as stack:
        source = stored_tensors(base, stack)
        replay = Replay(header, threads or len(usable_cores()), progress)
        _check_base(header, base, source, replay)
        nbytes = sum(written_bytes(tensor, dtype) for tensor in source)
        _check_space(out, nbytes)

        def write(target: Path) -> None:
            if dtype:
                _set_dtype(target / "config.json", dtype)
            card = model_card(header, len(steps), expected, run, base / "README.md", dtype)
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
            save_model(write, base, out)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    return Exported(out, len(steps), expected, nbytes, recorded.torn)


def check_base(header: Header, base: Path) -> None:
    """Check that the folder ``base`` holds the weights that a run started from. Raises ``UserError`` if not."""
    with ExitStack() as stack:
        _check_base(header, base, stored_tensors(base, stack), Replay(header, len(usable_cores()), None))


def _check_base(header: Header, base: Path, tensors: Sequence[StoredTensor], replay: Replay) -> None:
    found = replay.run("checking the base", tensors, ())
    if found != header.base.weights_checksum:
        raise UserError(
            f"{base}: not the model that the run started from ({header.base.name}): its weights have checksum "
            f"{found:016x}, the log says {header.base.weights_checksum:016x}; give the right one with --base"
        )


def _check_space(out: Path, needed: int) -> None:
    """Check early that the disk has enough free space."""
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(f"--out {out}: needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make room")


def _set_dtype(path: Path, dtype: Dtype) -> None:
    """Set the type in a model's ``config.json``, from which other libraries choose their compute type."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"the base model's config.json is damaged ({error}); fetch the model again") from error

    def change(part: dict[str, Any]) -> None:
        for key, value in part.items():
            if key in ("dtype", "torch_dtype") and isinstance(value, str):
                part[key] = dtype
            elif isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
                change(value)

    change(config)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

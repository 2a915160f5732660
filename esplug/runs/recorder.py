"""What a run writes while it goes on. A disk that is full costs records and checkpoints, but not the run."""

import errno
import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esplug.checkpoints.folders import periodic_name, prune, save_model
from esplug.checkpoints.seed_log import SeedLog, Step
from esplug.config import RunConfig
from esplug.engines.pool import EnginePool
from esplug.errors import RunError
from esplug.evaluation.figures import Evaluation
from esplug.loggers.logger_set import LoggerSet
from esplug.runs.directory import RunDirectory
from esplug.utils.console import get_console
from esplug.utils.json_files import write_json


class Recorder:
    """Writes iterations, evaluations and models of one run.

    An iteration counts as done once it is in the seed log, which therefore comes last: whatever else was written
    of an iteration that is not there is written again when the run is resumed.

    Args:
        config: which checkpoints to keep.
        run_dir: where everything goes.
        loggers: started.
        seed_log: open; ``None`` where nothing is trained.
        engines: hold the weights.
        base: folder of the model that the run started from.
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDirectory,
        loggers: LoggerSet,
        seed_log: SeedLog | None,
        engines: EnginePool,
        base: Path,
    ) -> None:
        self._config, self._run_dir, self._loggers = config, run_dir, loggers
        self._seed_log, self._engines, self._base = seed_log, engines, base
        self._unwritten: deque[Step] = deque()
        self._warned: set[str] = set()

    def iteration(self, step: Step, record: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write what an iteration did, and then that it is done."""
        with self._disk_may_fail(self._run_dir.iterations):
            self._run_dir.write_iteration(step.iteration, record)
        self._loggers.log(step.iteration, metrics)
        self._unwritten.append(step)
        with self._disk_may_fail(self._run_dir.seed_log):
            self._write_steps()

    def evaluation(self, evaluation: Evaluation, results: Mapping[str, Any]) -> None:
        """Write an evaluation: every sample, its figures, and what they depend on."""
        for split in evaluation.splits:
            with self._disk_may_fail(self._run_dir.evaluations):
                self._run_dir.write_evaluation(split.split, evaluation.iteration, split.record(evaluation.iteration))
            self._loggers.samples(evaluation.iteration, [sample.row() for sample in split.samples])
        self._loggers.log(evaluation.iteration, evaluation.metrics())
        with self._disk_may_fail(self._run_dir.path):
            self._run_dir.write_results(results)

    def profile(self, iteration: int, trace: Mapping[str, Any]) -> None:
        """Write the trace of an iteration, and say where it is."""
        path = self._run_dir.path / f"profile-iteration{iteration}.json"
        with self._disk_may_fail(path):
            write_json(path, trace)
            get_console().print(f"trace of iteration {iteration}: {path}", markup=False, soft_wrap=True)

    def checkpoint(self, iteration: int) -> None:
        """Save the master weights as they are, and remove the oldest of those saved so."""
        folder = self._run_dir.checkpoints
        with self._disk_may_fail(folder):
            self._save(periodic_name(iteration), functools.partial(self._engines.save, exact=True))
            prune(folder, self._config.keep_checkpoints)

    def best_model(self, name: str) -> None:
        """Save the model of the best evaluation yet."""
        with self._disk_may_fail(self._run_dir.checkpoints):
            self._save(name, self._engines.save)

    def final_model(self, name: str) -> Path:
        """Save the run's result.

        Raises:
            RunError: it cannot be written, or the last iterations could not.
        """
        try:
            if self._unwritten:
                self._write_steps()
            return self._save(name, self._engines.save)
        except OSError as error:
            raise RunError(
                f"{error.filename or self._run_dir.checkpoints}: cannot be written ({error.strerror or error}); "
                f"{_remedy(error)}, then: {self._config.how_to_resume(self._run_dir.path)}"
            ) from error

    def _save(self, name: str, save_weights: Callable[[Path], None]) -> Path:
        return save_model(save_weights, self._base, self._run_dir.checkpoints / name)

    def _write_steps(self) -> None:
        """Write what there is room for, in order."""
        assert self._seed_log is not None
        while self._unwritten:
            self._seed_log.append(self._unwritten[0])
            self._unwritten.popleft()

    @contextmanager
    def _disk_may_fail(self, where: Path) -> Iterator[None]:
        try:
            yield
            self._warned.discard(str(where))
        except OSError as error:
            said = f"{error.filename or where}: cannot be written ({error.strerror or error})"
            if str(where) not in self._warned:
                self._warned.add(str(where))
                get_console().print(f"{said}; {_remedy(error)}. The run goes on", markup=False, soft_wrap=True)


def _remedy(error: OSError) -> str:
    return "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"

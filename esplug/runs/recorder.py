"""Recorder: writes what a run produces. A full disk costs records and checkpoints, but does not stop the run."""

import errno
import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from esplug.checkpoints.folders import periodic_name, prune, save_model
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Step
from esplug.config import RunConfig
from esplug.data.splits import EvaluationSplit
from esplug.engines.pool import EnginePool
from esplug.engines.usage import resident_memory
from esplug.errors import RunError
from esplug.evaluation.figures import Evaluation, evaluation_end
from esplug.loggers.logger_set import LoggerSet
from esplug.planning.placement import Plan
from esplug.runs.directory import RunDirectory
from esplug.runs.early_stopping import Stop
from esplug.runs.metrics import Iteration, iteration_end, iteration_record, train_metrics, usage_metrics
from esplug.runs.result import results
from esplug.runs.trace import trace
from esplug.utils.console import say
from esplug.utils.json_files import write_json


class Recorder:
    """Writes iterations, evaluations and models of one run.

    An iteration is done once it is in the seed log, so the seed log is written last. A resumed run repeats, and writes
    again, all iterations that are not in it. The seed log is ``None`` if the run does not train; ``base`` is the folder
    of the model that the run started from.
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

    def iteration(self, step: Step, iteration: Iteration) -> str:
        """Write and log an iteration, then add its update to the seed log. Write a trace if one was requested.

        Returns:
            Why a callback asks to stop the run, or ``""``.
        """
        config, number, started = self._config, step.iteration, time.perf_counter()
        metrics = train_metrics(iteration.result, len(self._engines), antithetic=config.antithetic)
        metrics |= {"time/update": iteration.update_seconds, "time/iteration": iteration.seconds}
        metrics |= {"train/sigma": config.sigma_at(number), "train/alpha": config.alpha_at(number)}
        metrics |= usage_metrics(resident_memory([os.getpid()]), self._engines.usage(iteration.seconds))
        with self._disk_may_fail(self._run_dir.iterations):
            self._run_dir.write_iteration(number, iteration_record(step, iteration, metrics))
        self._loggers.log(number, metrics)
        self._unwritten.append(step)
        with self._disk_may_fail(self._run_dir.seed_log):
            self._write_steps()
        if number == config.profile:
            self._write_trace(number, iteration, time.perf_counter() - started)
        return self._loggers.iteration_end(lambda: iteration_end(step, iteration, metrics))

    def evaluation(self, evaluations: Sequence[Evaluation]) -> str:
        """Write and log the last of the run's evaluations: samples and figures.

        Returns:
            Why a callback asks to stop the run, or ``""``.
        """
        evaluation = evaluations[-1]
        for split in evaluation.splits:
            with self._disk_may_fail(self._run_dir.evaluations):
                self._run_dir.write_evaluation(split.split, evaluation.iteration, split.record(evaluation.iteration))
            self._loggers.samples(evaluation.iteration, [sample.row() for sample in split.samples])
        self._loggers.log(evaluation.iteration, evaluation.metrics())
        return self._loggers.evaluation_end(lambda: evaluation_end(evaluations))

    def results(
        self,
        evaluation: Evaluation,
        splits: Mapping[str, EvaluationSplit],
        checksum: int,
        plan: Plan,
        stop: Stop | None,
        max_turns: int,
    ) -> None:
        """Write ``results.json``: an evaluation of the weights with this checksum, after which the run may stop."""
        record = results(self._config, self._base, checksum, plan, splits, evaluation, stop, max_turns)
        with self._disk_may_fail(self._run_dir.path):
            self._run_dir.write_results(record)

    def checkpoint_if_due(self, iteration: int) -> None:
        """Every ``--checkpoint-every`` iterations, save the exact master weights, and remove the oldest checkpoints."""
        every, folder = self._config.checkpoint_every, self._run_dir.checkpoints
        if not every or iteration % every:
            return
        with self._disk_may_fail(folder):
            self._save(periodic_name(iteration), functools.partial(self._engines.save, exact=True))
            prune(folder, self._config.keep_checkpoints)

    def best_model(self, name: str) -> None:
        """Save the model of the best evaluation so far."""
        with self._disk_may_fail(self._run_dir.checkpoints):
            self._save(name, self._engines.save)

    def final_model(self, updates: int) -> Path:
        """Save the trained model after all of the run's updates.

        Raises:
            RunError: it, or the seed log's last iterations, cannot be written.
        """
        try:
            if self._unwritten:
                self._write_steps()
            return self._save(self._run_dir.final_model(updates).name, self._engines.save)
        except OSError as error:
            raise RunError(
                f"{error.filename or self._run_dir.checkpoints}: cannot be written ({error.strerror or error}); "
                f"{_remedy(error)}, then: {self._config.how_to_resume(self._run_dir.path)}"
            ) from error

    def _save(self, name: str, save_weights: Callable[[Path], None]) -> Path:
        return save_model(save_weights, self._base, self._run_dir.checkpoints / name)

    def _write_trace(self, number: int, iteration: Iteration, record_seconds: float) -> None:
        path = self._run_dir.path / f"profile-iteration{number}.json"
        phases = iteration.phases | {"record": record_seconds}
        with self._disk_may_fail(path):
            write_json(path, trace(iteration.members, iteration.result, iteration.began, phases))
            say(f"trace of iteration {number}: {path}")

    def _write_steps(self) -> None:
        """Add updates to the seed log, in order, until the disk is full."""
        assert self._seed_log is not None
        while self._unwritten:
            self._seed_log.append(self._unwritten[0])
            self._unwritten.popleft()

    @contextmanager
    def _disk_may_fail(self, where: Path) -> Iterator[None]:
        """Warn about the first ``OSError`` at ``where`` instead of raising it."""
        try:
            yield
            self._warned.discard(str(where))
        except OSError as error:
            if str(where) not in self._warned:
                self._warned.add(str(where))
                failure = f"{error.filename or where}: cannot be written ({error.strerror or error})"
                say(f"{failure}; {_remedy(error)}. The run continues")


def _remedy(error: OSError) -> str:
    return "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "fix that"

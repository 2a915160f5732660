"""Probe of the engines: measures generation, weight switches, updates and evaluation on this machine."""

import math
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from esplug.data.splits import EvaluationSplit
from esplug.es.members import population
from esplug.evaluation.evaluator import CHUNK, Evaluator
from esplug.planning.cost import Speed
from esplug.runs.directory import RunDirectory
from esplug.runs.metrics import PopulationResult
from esplug.trainer import EvolutionStrategiesTrainer

_LONG = 8.0  # seconds of generation after which no larger batch is tried
_FIRST = 8  # prompts in the first batch
_MEMBERS = 8  # members in the measured update
_ZERO = 0.0  # coefficient that leaves the weights unchanged, at the same cost as any other


class Probe(EvolutionStrategiesTrainer):
    """A trainer that measures its engines, without a run directory. ``chunk`` is the answers per evaluation job."""

    def measure(self, beside: Path) -> Speed:
        """Start, measure and stop the engines. Their logs go to a folder in ``beside``, which all of them can access.

        Raises:
            UserError: the run would raise the same error before training.
            RunError: the engines do not start, or no answer can be graded.
        """
        RunDirectory.check(self.config)
        began = time.perf_counter()
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(dir=beside, prefix=".dry-run-", ignore_cleanup_errors=True))
            elsewhere = {"output_directory": folder, "experiment_name": None, "logging": ["none"]}
            self.config = self.config.model_copy(update=elsewhere)
            self._open(stack, None, False)
            start_seconds = time.perf_counter() - began
            self.n_engines, self.chunk = len(self.engines), CHUNK[self._plan.device]
            return self._measure(start_seconds)

    def _finish(self, *_: object) -> None:
        """Close the loggers, and print no summary of a run."""
        self.loggers.finish("finished")

    def _measure(self, start_seconds: float) -> Speed:
        config = self.config
        if not config.n_iterations:
            answer, tokens, rate = self._measure_evaluation(self.chunk)
            return Speed(self.n_engines, 1, 1, tokens, rate, start_seconds, 0.0, 0.0, 0.0, 0.0, 0.0, answer)
        together = config.members_at_once(self.n_engines)
        busy = min(self.n_engines, math.ceil(config.population_size / together))
        result, prompts = self._measure_generation(min(busy * together, config.population_size))
        lengths = [completion.tokens for each in result.generations for completion in each.completions]
        switch = sum(generation.switch_seconds for generation in result.generations) / busy
        generate = max(0.0, result.generate_seconds - switch)
        fixed, per_member = self._measure_update()
        rows = self.n_engines * self.chunk if self.chunk * generate / (together * prompts) < 2 * _LONG else prompts
        return Speed(
            engines=busy,
            members=together,
            prompts=prompts,
            tokens=sum(lengths) / len(lengths),
            tokens_per_second=sum(lengths) / result.generate_seconds,
            start=start_seconds,
            switch=switch,
            generate=generate,
            grade=result.grade_seconds,
            update=fixed,
            update_member=per_member,
            evaluation_answer=self._measure_evaluation(rows)[0],
        )

    def _measure_generation(self, size: int) -> tuple[PopulationResult, int]:
        """Evaluate ``size`` members on more and more prompts, until that takes long or uses a whole mini-batch."""
        questions, targets = next(self._prompts.batches)
        most = min(len(questions), self.config.mini_batch_size)
        prompts, number = min(_FIRST, most), 0
        while True:
            # New members each time, so that every engine has to write their weights.
            members = population(self.config.seed, number, size, antithetic=False)
            result = self.evaluate_population_on_batch(members, questions[:prompts], targets[:prompts])
            if prompts == most or result.generate_seconds > _LONG:
                return result, prompts
            prompts = min(most, prompts * (4 if result.generate_seconds < _LONG / 4 else 2))
            number += 1

    def _measure_update(self) -> tuple[float, float]:
        """Return the fixed seconds of an update, and the seconds per member."""
        many = min(_MEMBERS, self.config.population_size)
        seconds = {}
        for count in (1, 1, many):  # the first call compiles
            began = time.perf_counter()
            self.engines.update(list(range(count)), [_ZERO] * count)
            seconds[count] = time.perf_counter() - began
        per_member = max(0.0, seconds[many] - seconds[1]) / (many - 1)
        return max(0.0, seconds[1] - per_member), per_member

    def _measure_evaluation(self, answers: int) -> tuple[float, float, float]:
        """Return one engine's seconds per answer, the mean tokens per answer, and all engines' tokens per second."""
        rows = max(1, answers // self.config.eval_n_samples)
        splits = {}
        for name, split in self._prompts.evaluator.splits.items():
            if rows > 0:
                splits[name] = EvaluationSplit(*(column[:rows] for column in split.columns))
                rows -= len(split.texts)
        if not splits:
            return 0.0, 0.0, 0.0
        evaluator = Evaluator(self.config, splits, self._plan.device, self._prompts.builder.encoder.end_tokens)
        began = time.perf_counter()
        evaluated, _ = evaluator.evaluate(self._generate, self._grade, self.progress, "evaluation")
        seconds = time.perf_counter() - began
        lengths = [sample.tokens for split in evaluated for sample in split.samples]
        busy = min(self.n_engines, math.ceil(len(lengths) / self.chunk))
        return seconds * busy / len(lengths), sum(lengths) / len(lengths), sum(lengths) / seconds

"""A short probe of the engines: what answering, writing weights, updating and evaluating take here and now."""

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

_LONG = 8.0  # seconds of answering, behind which no larger batch is tried
_FIRST = 8  # prompts of the first batch
_MEMBERS = 8  # whose noise the measured update adds
_NOTHING = 0.0  # a coefficient that costs as much as any and leaves weights as they are


class Probe(EvolutionStrategiesTrainer):
    """A trainer that starts its engines as a run does, measures them and makes no run.

    Attributes:
        chunk: answers that evaluations hand to an engine at a time.
        n_engines: of the run.
    """

    def measure(self, beside: Path) -> Speed:
        """Start the engines, measure them, and stop them.

        Args:
            beside: folder that all engines see, where a temporary one is made for their logs.

        Raises:
            UserError: what a run would raise before it trains.
            RunError: the engines do not start, or no answer can be graded.
        """
        RunDirectory.check(self.config)
        began = time.perf_counter()
        with ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(dir=beside, prefix=".dry-run-", ignore_cleanup_errors=True))
            elsewhere = {"output_directory": folder, "experiment_name": None, "logging": ["none"]}
            self.config = self.config.model_copy(update=elsewhere)
            self._open(stack, None, False)
            started = time.perf_counter() - began
            self.n_engines, self.chunk = len(self.engines), CHUNK[self._plan.device]
            return self._measured(started)

    def _finish(self, *_: object) -> None:
        """Close the loggers; there is no run to speak of."""
        self.loggers.finish("finished")

    def _measured(self, started: float) -> Speed:
        config = self.config
        if not config.n_iterations:
            answer, tokens, rate = self._evaluated(self.chunk)
            return Speed(self.n_engines, 1, 1, tokens, rate, started, 0.0, 0.0, 0.0, 0.0, 0.0, answer)
        together = config.members_at_once(self.n_engines)
        busy = min(self.n_engines, math.ceil(config.population_size / together))
        result, prompts = self._answered(min(busy * together, config.population_size))
        lengths = [completion.tokens for each in result.generations for completion in each.completions]
        switch = sum(generation.switch_seconds for generation in result.generations) / busy
        generate = max(0.0, result.generate_seconds - switch)
        fixed, each = self._updated()
        rows = self.n_engines * self.chunk if self.chunk * generate / (together * prompts) < 2 * _LONG else prompts
        return Speed(
            engines=busy,
            members=together,
            prompts=prompts,
            tokens=sum(lengths) / len(lengths),
            tokens_per_second=sum(lengths) / result.generate_seconds,
            start=started,
            switch=switch,
            generate=generate,
            grade=result.grade_seconds,
            update=fixed,
            update_member=each,
            evaluation_answer=self._evaluated(rows)[0],
        )

    def _answered(self, size: int) -> tuple[PopulationResult, int]:
        """Let every engine answer for its members, more prompts each time until that takes long or there are no more.

        Returns the last result, and how many prompts it is of.
        """
        questions, targets = next(self._batches)
        most = min(len(questions), self.config.mini_batch_size)
        prompts, number = min(_FIRST, most), 0
        while True:
            # Other members each time, whose weights no engine holds yet.
            members = population(self.config.seed, number, size, antithetic=False)
            result = self.evaluate_population_on_batch(members, questions[:prompts], targets[:prompts])
            if prompts == most or result.generate_seconds > _LONG:
                return result, prompts
            prompts = min(most, prompts * (4 if result.generate_seconds < _LONG / 4 else 2))
            number += 1

    def _updated(self) -> tuple[float, float]:
        """Return the seconds of an update, and those of each member's noise in it."""
        many = min(_MEMBERS, self.config.population_size)
        seconds = {}
        for count in (1, 1, many):  # the first compiles
            began = time.perf_counter()
            self.engines.update(list(range(count)), [_NOTHING] * count)
            seconds[count] = time.perf_counter() - began
        each = max(0.0, seconds[many] - seconds[1]) / (many - 1)
        return max(0.0, seconds[1] - each), each

    def _evaluated(self, answers: int) -> tuple[float, float, float]:
        """Evaluate the first rows.

        Returns the seconds in which one engine makes an answer, the tokens of an answer on average, and the tokens per
        second of all engines.
        """
        rows = max(1, answers // self.config.eval_n_samples)
        splits = {}
        for name, split in self._evaluator.splits.items():
            if rows > 0:
                splits[name] = EvaluationSplit(split.texts[:rows], split.prompts[:rows], split.targets[:rows])
                rows -= len(split.texts)
        if not splits:
            return 0.0, 0.0, 0.0
        evaluator = Evaluator(self.config, splits, self._plan.device, self._prompt_builder.encoder.turn_ends)
        began = time.perf_counter()
        evaluated, _ = evaluator.evaluate(self.engines, self._grade, self.progress, "evaluation")
        seconds = time.perf_counter() - began
        lengths = [sample.tokens for split in evaluated for sample in split.samples]
        busy = min(self.n_engines, math.ceil(len(lengths) / self.chunk))
        return seconds * busy / len(lengths), sum(lengths) / len(lengths), sum(lengths) / seconds

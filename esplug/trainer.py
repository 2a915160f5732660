"""Trainer: the loop that perturbs, generates, grades, shapes, updates and evaluates."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from esplug import plugins
from esplug.checkpoints.base_model import kind_of_folder, longest_prompt
from esplug.checkpoints.folders import weights_hash
from esplug.checkpoints.model_kind import ModelUse
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Step, movement, why_unchanged
from esplug.checkpoints.starting_model import starting_model
from esplug.config import RunConfig, make_config
from esplug.data.batches import Batch, Batches
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import PromptBuilder
from esplug.doctor.installation import require_installation
from esplug.engines import EnginePool, Job
from esplug.engines.cluster import Cluster
from esplug.engines.messages import Generation
from esplug.errors import RunError, UserError
from esplug.es import update
from esplug.es.members import Member, population
from esplug.evaluation.evaluator import Evaluator
from esplug.evaluation.figures import Evaluation
from esplug.hookspecs import Prompt
from esplug.loggers.logger_set import LoggerSet
from esplug.planning.memory import cpu_items, cpu_kv_cache_most
from esplug.planning.placement import plan_engines
from esplug.rewards import PendingRewards, RewardPool
from esplug.rewards.anomalies import UNDEFINED, AnomalyReporter
from esplug.rewards.trial import try_reward
from esplug.runs.directory import RunDirectory, environment
from esplug.runs.engines import create_seed_log, engine_settings, population_jobs, shares_prefixes, start_engines
from esplug.runs.metrics import Iteration, PopulationResult
from esplug.runs.recorder import Recorder
from esplug.runs.result import RunResult, results
from esplug.runs.resume import check_environment, note_changes, past_evaluations, reopen
from esplug.runs.tables import print_summary
from esplug.utils.console import say
from esplug.utils.progress import LiveProgress


class EvolutionStrategiesTrainer:
    """Fine-tunes a model with Evolution Strategies. Construct it, then call :meth:`fit`.

    Subclasses can override :meth:`launch_engines`, :meth:`evaluate_population_on_batch`, :meth:`eval_step` and
    :meth:`_postprocess_outputs`. Arguments not listed are the fields of :class:`esplug.config.RunConfig` of that name.

    Args:
        reward_function: ``(model_output, target)`` to a float, ``(label, float)`` or :class:`esplug.hookspecs.Reward`.
            Runs in other processes, which are killed after ``reward_function_timeout``.
        train_dataloader: iterable of ``(questions, targets)`` batches, such as a list or a torch ``DataLoader``. It is
            restarted when it ends. ``batch_size`` does not change its batches.
        template_function: maps a question to the prompt (text or chat messages), in training and evaluation.
        eval_dataloader_dict: maps a split name to an iterable of batches.
        num_iterations: number of updates; 0 only evaluates.
        global_seed: seed of all random numbers.
        settings: any other field of :class:`esplug.config.RunConfig`, such as ``antithetic``.

    Raises:
        UserError: a setting is out of range or unknown.
    """

    #: Class of the engine pool.
    pool: type[EnginePool] = EnginePool

    def __init__(
        self,
        model_name: str = "Qwen/Qwen2.5-1.5B-Instruct",
        checkpoint: str | None = None,
        sigma: float = 0.001,
        alpha: float | None = None,
        population_size: int = 30,
        reward_shaping: str = "z-scores",
        num_iterations: int = 300,
        max_tokens: int = 512,
        batch_size: int = 512,
        mini_batch_size: int = 512,
        reward_function: Callable[..., Any] | None = None,
        template_function: Callable[[Any], Prompt] | None = None,
        train_dataloader: Iterable[Batch] | None = None,
        eval_dataloader_dict: Mapping[str, Iterable[Batch]] | None = None,
        eval_freq: int = 5,
        n_vllm_engines: int | None = None,
        n_gpu_per_vllm_engine: int = 1,
        logging: str | Sequence[str] | None = ("console", "jsonl"),
        global_seed: int = 42,
        use_gpus: str | Sequence[int] | None = None,
        experiment_name: str | None = None,
        wandb_project: str = "es-finetuning",
        reward_function_timeout: float = 10.0,
        save_best_models: bool = False,
        output_directory: str = "./experiments/",
        **settings: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in RunConfig.model_fields}
        config = make_config({"task": "custom"}, given, {"n_iterations": num_iterations, "seed": global_seed}, settings)
        self._setup(config, reward_function, template_function, train_dataloader, eval_dataloader_dict)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        reward_function: Callable[..., Any] | None,
        template_function: Callable[[Any], Prompt] | None,
        train_dataloader: Iterable[Batch] | None,
        eval_dataloader_dict: Mapping[str, Iterable[Batch]] | None,
    ) -> Self:
        """Make a trainer from a validated configuration."""
        trainer = cls.__new__(cls)
        trainer._setup(config, reward_function, template_function, train_dataloader, eval_dataloader_dict)
        return trainer

    def _setup(
        self,
        config: RunConfig,
        reward_function: Callable[..., Any] | None,
        template_function: Callable[[Any], Prompt] | None,
        train_dataloader: Iterable[Batch] | None,
        eval_dataloader_dict: Mapping[str, Iterable[Batch]] | None,
    ) -> None:
        if not callable(reward_function):
            found = "is missing" if reward_function is None else f"is not callable ({type(reward_function).__name__})"
            raise UserError(f"reward_function {found}: give a function (model_output, target) -> float")
        if train_dataloader is None and config.n_iterations > 0:
            raise UserError("train_dataloader is missing: give an iterable of (prompts, targets) batches")
        if isinstance(train_dataloader, Iterator):
            raise UserError("train_dataloader can be iterated only once; give a list or a DataLoader instead")
        self.config = config
        self.reward_function = reward_function
        self.template_function = template_function
        self.train_dataloader = train_dataloader
        self.eval_dataloader_dict = dict(eval_dataloader_dict or {})
        self.evaluations: list[Evaluation] = []
        self.checksum = 0
        self._anomalies = AnomalyReporter()
        self._running = False

    def fit(self, resume: str | Path | None = None, *, allow_change: bool = False, summary: bool = True) -> RunResult:
        """Evaluate, make ``num_iterations`` updates, save the model and evaluate it.

        Args:
            resume: directory of an interrupted run to continue in place. Seeds, data order and best evaluation
                continue, too, so the weights become those of an uninterrupted run. ``train_dataloader`` must give the
                same batches again; one that shuffles without a fixed seed does not.
            allow_change: resume even if the data, or a setting that affects the weights, has changed.
            summary: print the results at the end, as `esplug train` does, or without the ``console`` logger where they
                are.

        Raises:
            UserError: an error that you can fix, found before training.
            RunError: the run had to stop.
        """
        started, model = time.perf_counter(), None
        with ExitStack() as stack:
            self._open(stack, Path(resume).expanduser() if resume else None, allow_change)
            config = self.config
            for iteration in self._iterations:
                if config.evaluates_at(iteration):
                    self.eval_step(iteration)
                self.train_step(iteration)
                if config.checkpoint_every and (iteration + 1) % config.checkpoint_every == 0:
                    self.recorder.checkpoint(iteration + 1)
                self.progress.iteration_done()
            if config.n_iterations:  # before the evaluation, which may fail
                model = self.recorder.final_model(config.final_name)
            self.eval_step(config.n_iterations)
        seconds = time.perf_counter() - started
        unchanged = why_unchanged(self.history.base or 0, self.history.steps)
        result = RunResult(
            self.run_dir.path, self.evaluations, model, self.checksum, self._plan, seconds, unchanged=unchanged
        )
        if summary:
            print_summary(result, tables="console" in config.logging)
        return result

    def train_step(self, iteration: int) -> None:
        """Make one update from the next batch."""
        config, began, started = self.config, time.time(), time.perf_counter()
        questions, targets = next(self._batches)
        members = population(config.seed, iteration, config.population_size, antithetic=config.antithetic)
        self.progress.begin(f"iteration {iteration + 1}", len(members))
        result = self.evaluate_population_on_batch(members, questions, targets)
        self._anomalies.check_grades(result.grades)

        utilities = self._utilities(result.rewards)
        coefficients = update.coefficients(config.alpha_at(iteration), utilities, members)
        evaluated = time.perf_counter()
        step = self._update(iteration, coefficients)
        updated = time.perf_counter()
        record = Iteration(members, result, utilities, began, updated - started, updated - evaluated)
        self.recorder.iteration(step, record)

    def evaluate_population_on_batch(
        self, members: Sequence[Member], questions: Sequence[Any], targets: Sequence[Any]
    ) -> PopulationResult:
        """Generate every member's answer to every question, and grade answers while engines generate.

        All members use the same sampling seeds, so that their rewards differ by their weights only.
        """
        started = time.perf_counter()
        answered: dict[int, tuple[Generation, PendingRewards]] = {}
        for i, generation in self.engines.run(self._jobs(members, questions)):
            answered[i] = generation, self._grade(generation, targets)
            self.progress.advance()
        generations = [answered[i][0] for i in range(len(members))]
        self._anomalies.check_outputs(answer.text for each in generations for answer in each.completions)
        generated = time.perf_counter()
        graded = [answered[i][1].result() for i in range(len(members))]
        rewards = np.array([[grade.reward.value for grade in row] for row in graded])
        return PopulationResult(rewards, graded, generations, generated - started, time.perf_counter() - generated)

    def eval_step(self, iteration: int) -> Evaluation | None:
        """Evaluate the current weights on every split and write the results. Returns ``None`` without evaluation data.

        With ``save_best_models``, save the model if the evaluation is the best so far.
        """
        if not self._evaluator.splits:
            return None
        started = time.perf_counter()
        splits, grades = self._evaluator.evaluate(self.engines, self._grade, self.progress, f"evaluation {iteration}")
        self._anomalies.check_grades(grades)
        self._anomalies.check_outputs(sample.output for split in splits for sample in split.samples)
        evaluation = Evaluation(iteration, splits, time.perf_counter() - started)
        best = max((earlier.mean for earlier in self.evaluations), default=np.inf)
        self.evaluations.append(evaluation)
        if self.config.save_best_models and evaluation.mean > best:
            self.recorder.best_model(f"{self.config.run_name}-mean{evaluation.mean:.4f}")
        record = results(self.config, self._model, self.checksum, self._plan, self._evaluator.splits, evaluation)
        self.recorder.evaluation(evaluation, record)
        return evaluation

    def _jobs(self, members: Sequence[Member], questions: Sequence[Any]) -> Iterator[Job[int]]:
        """Make the members' jobs: the same prompts with the same sampling seeds."""
        prompts, ends = self._prompt_builder.encode(questions), self._prompt_builder.encoder.end_tokens
        sigma = self.config.sigma_at(len(self.history.steps))
        return population_jobs(self.config, members, prompts, ends, sigma, len(self.engines))

    def _grade(self, generation: Generation, targets: Sequence[Any]) -> PendingRewards:
        """Start grading answers; those of a model that computed NaN or infinity fail without grading."""
        if generation.undefined:
            why = f"the model gave NaN or infinity for {generation.undefined} tokens, so its answers mean nothing"
            return PendingRewards.failed(len(targets), UNDEFINED, why)
        return self._postprocess_outputs([completion.text for completion in generation.completions], targets)

    def _postprocess_outputs(self, outputs: list[str], targets: Sequence[Any]) -> PendingRewards:
        """Send answers to the graders. Called as soon as an engine has generated them."""
        return self._reward_pool.submit(outputs, targets)

    def _utilities(self, rewards: update.FloatArray) -> update.FloatArray:
        """Shape the rewards float64[N, B] to utilities float64[N]."""
        size, utilities = len(rewards), np.asarray(self._shape(rewards=rewards), dtype=np.float64)
        if utilities.shape != (size,) or not np.isfinite(utilities).all():
            name = self.config.reward_shaping
            raise RunError(f"reward shaping {name!r} must return {size} finite utilities, not {utilities.tolist()}")
        return utilities

    def _update(self, iteration: int, coefficients: list[float]) -> Step:
        """Add the members' noise, times their coefficients, to the weights of all engines."""
        config = self.config
        if not np.isfinite(coefficients).all():
            raise RunError(f"{config.reward_shaping!r} makes utilities of these rewards that are too large for float32")
        step = Step(iteration, tuple(coefficients), config.antithetic, self.checksum, config.momentum)
        seeds, scales = movement([*self.history.steps, step], config.seed)
        if not any(coefficients):
            effect = "only momentum moves the weights" if seeds else "no update"
            say(f"iteration {iteration}: every utility is zero (all rewards equal?), so {effect}")
        if seeds:
            self.checksum = self.engines.update(seeds, scales)
            step = replace(step, checksum=self.checksum)
        self.history.append(step)
        return step

    # --- start and end of a run -------------------------------------------------------------------------

    def _open(self, stack: ExitStack, resume: Path | None, allow_change: bool) -> None:
        """Set up the run: cheap checks first, engines last."""
        require_installation()
        requested, self._resume, log = self.config, resume, None
        if resume:
            self.run_dir, log, self.config = reopen(resume, requested, allow_change=allow_change, stack=stack)
        else:
            RunDirectory.check(requested)
        config, first = self.config, len(log.steps) if log else 0
        self._iterations = range(first, config.n_iterations)
        self._shape = plugins.load("shaping", config.reward_shaping).shape
        self.loggers = LoggerSet(config.logging)
        self._find_model(stack, log)
        encoder = self._start_graders_and_ray(stack)
        train_data = self._check_prompts(encoder)
        self._try_reward()
        about = {"engines": asdict(self._plan), "train_data": train_data, "end_tokens": list(encoder.end_tokens)}
        surroundings = environment() | about
        self._open_directory(stack, surroundings, allow_change)
        say(f"{self._plan.describe()}; loading {self._model.name}")
        self.engines = self.launch_engines()
        stack.callback(self.engines.close)
        self.history, found = start_engines(self.engines, config, self.run_dir, self._model, log)
        self.checksum = weights_hash(self._model) if self._kind.quantised else found.checksum
        if log is None and config.n_iterations:
            log = stack.enter_context(create_seed_log(config, self.run_dir, self._model, found.base))
        self.recorder = Recorder(config, self.run_dir, self.loggers, log, self.engines, self._model)
        self.evaluations = past_evaluations(self.run_dir, self._evaluator.splits, config, first)
        if resume and log:  # only now is it known that the new settings work
            note_changes(self.run_dir, requested, surroundings, log)
        self._running = True
        progress = LiveProgress(config.n_iterations, first, enabled="console" in config.logging)
        self.progress = stack.enter_context(progress)

    def _find_model(self, stack: ExitStack, log: SeedLog | None) -> None:
        """Find or convert the model to start from, and check that it fits the settings."""
        config, revision = self.config, log.header.base.revision if log else None
        # A converted model goes to the folder of runs, as engines on other machines see it.
        runs = self._resume.absolute().parent if self._resume else Path(config.output_directory).expanduser().absolute()
        use = ModelUse.of(config)
        self._model = starting_model(config.model_name, config.checkpoint, revision, runs, stack, use)
        self._kind = kind_of_folder(self._model, use)
        for note in self._kind.notes():
            say(f"note: {note}")
        self._engine_bytes = sum(item.nbytes for item in cpu_items(self._model, config))
        longest_prompt(self._model, config.max_model_len, config.max_tokens)

    def _start_graders_and_ray(self, stack: ExitStack) -> PromptEncoder:
        """Start graders and Ray, and load the tokenizer meanwhile: each takes seconds."""
        config = self.config
        helper = ThreadPoolExecutor(1)
        loading = helper.submit(PromptEncoder.load, self._model, config)
        helper.shutdown(wait=False)
        self._reward_pool = RewardPool(
            self.reward_function,
            timeout=config.reward_function_timeout,
            memory=config.reward_memory,
            concurrency=config.reward_concurrency,
        )
        stack.callback(self._reward_pool.close)
        self._reward_pool.begin()
        cluster = Cluster(config.ray_address, config.use_gpus)
        stack.callback(cluster.close)
        self._plan = plan_engines(config, cluster.resources(), self._engine_bytes)
        return loading.result()

    def _check_prompts(self, encoder: PromptEncoder) -> dict[str, Any] | None:
        """Check all prompts known before the run. Returns the row count and fingerprint of training data in memory."""
        self._prompt_builder = builder = PromptBuilder(encoder, self.template_function)
        splits = {name: builder.split(name, loader) for name, loader in self.eval_dataloader_dict.items()}
        self._evaluator = Evaluator(self.config, splits, self._plan.device, encoder.end_tokens)
        known = [split.prompts for split in splits.values()]
        self._some_targets = [target for split in splits.values() for target in split.targets]
        train, iterations = self.train_dataloader, self._iterations
        train_data = builder.fingerprint(train) if isinstance(train, Batches) else None
        if train is not None and iterations.stop:
            first, self._batches = builder.batches(train, iterations.start)
            known.append(builder.encode(first[0], "first training batch, prompt"))
            self._some_targets = first[1]
        self._prefix_caching = shares_prefixes(self.config, self._model, self._plan, known)
        return train_data

    def _try_reward(self) -> None:
        """Wait for the graders, and check that the reward function can grade, unless a subclass grades otherwise."""
        self._reward_pool.ready()
        if self._some_targets and type(self)._postprocess_outputs is EvolutionStrategiesTrainer._postprocess_outputs:
            try_reward(self._reward_pool, self._some_targets)

    def _open_directory(self, stack: ExitStack, surroundings: dict[str, Any], allow_change: bool) -> None:
        """Create the run directory, or compare a resumed run's environment with the present one; start the loggers."""
        first = self._iterations.start
        if self._resume:
            check_environment(self.run_dir, surroundings, allow_change=allow_change)
            say(f"resuming at iteration {first} of {self.config.n_iterations}")
        else:
            self.run_dir = RunDirectory.create(self.config, surroundings, stack)
        stack.push(self._finish)
        self.run_dir.write_status("running")
        self.loggers.start(self.config, self.run_dir.path, first)

    def launch_engines(self) -> EnginePool:
        """Make the engine pool, which the trainer then starts."""
        config, plan = self.config, self._plan
        settings = engine_settings(config, plan, self._model, self._kind, prefix_caching=self._prefix_caching)
        return self.pool(
            plan,
            settings,
            self._engine_bytes,
            cpu_kv_cache_most(self._model, config),
            self.run_dir.path,
            timeout=config.engine_timeout,
            max_restarts=config.max_restarts,
        )

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the loggers, write the status, and remove the directory of a new run that could not start."""
        status = "finished" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.loggers.finish(status)
        self.run_dir.write_status(status, error)
        if isinstance(error, UserError) and not self._running and not self._resume:
            shutil.rmtree(self.run_dir.path, ignore_errors=True)
        elif error is not None:
            hint = f"; to resume: {self.config.how_to_resume(self.run_dir.path)}" if self.config.n_iterations else ""
            say(f"{status}; see {self.run_dir.path}{hint}")

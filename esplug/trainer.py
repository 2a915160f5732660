"""Trainer: the loop that perturbs, generates, grades, shapes, updates and evaluates."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from esplug import plugins
from esplug.checkpoints.folders import weights_hash
from esplug.checkpoints.seed_log_records import why_unchanged
from esplug.config import RunConfig, make_config
from esplug.conversations.dialogues import Dialogues, Rows
from esplug.conversations.turns import max_turns
from esplug.data.batches import Batch
from esplug.data.conversation import Conversation
from esplug.data.prompts import PromptBuilder
from esplug.doctor.installation import require_installation
from esplug.engines import EnginePool, Job
from esplug.engines.messages import Generation
from esplug.errors import UserError
from esplug.es import update
from esplug.es.members import Member, population
from esplug.evaluation.figures import Evaluation
from esplug.hookspecs import Prompt
from esplug.loggers.callbacks import callback_hooks
from esplug.loggers.logger_set import LoggerSet
from esplug.planning.memory import cpu_kv_cache_most
from esplug.rewards import PendingRewards
from esplug.rewards.anomalies import UNDEFINED, AnomalyReporter
from esplug.rewards.trial import try_reward
from esplug.runs.answers import some_answers
from esplug.runs.directory import RunDirectory
from esplug.runs.early_stopping import Stop, check_metric, early_stop
from esplug.runs.engines import create_seed_log, engine_settings, population_jobs, start_engines, warn_of_slow_types
from esplug.runs.metrics import Iteration, PopulationResult
from esplug.runs.preparation import check_inputs, check_prompts, find_model, start_graders_and_ray
from esplug.runs.recorder import Recorder
from esplug.runs.result import RunResult, run_end
from esplug.runs.resume import check_environment, note_changes, past_evaluations, reopen
from esplug.runs.tables import print_summary
from esplug.runs.updating import make_update, shaped
from esplug.utils.console import say
from esplug.utils.progress import LiveProgress


class EvolutionStrategiesTrainer:
    """Fine-tunes a model with Evolution Strategies. Construct it, then call :meth:`fit`.

    To look at a run or to stop it, pass ``callbacks``. To change what it does, override :meth:`launch_engines`,
    :meth:`evaluate_population_on_batch` or :meth:`_postprocess_outputs`. Arguments not listed are the fields of
    :class:`esplug.config.RunConfig` of that name.

    Args:
        reward_function: ``(model_output, target)`` to a float, ``(label, float)`` or :class:`esplug.hookspecs.Reward`.
            Runs in other processes, which are killed after ``reward_function_timeout``.
        train_dataloader: iterable of ``(questions, targets)`` batches, such as a list or a torch ``DataLoader``. It is
            restarted when it ends. ``batch_size`` does not change its batches.
        template_function: maps a question to the prompt (text or chat messages), in training and evaluation.
        eval_dataloader_dict: maps a split name to an iterable of batches.
        callbacks: objects whose methods ``on_iteration_end``, ``on_evaluation_end`` and ``on_run_end`` look at the run,
            and may stop it. They may have all hooks of :class:`esplug.hookspecs.LoggerSpec`, without ``@hookimpl``.
        num_iterations: number of updates; 0 only evaluates.
        global_seed: seed of all random numbers.
        turn_function: ``(messages, target)`` to the environment's messages or ``None``, for tasks with several turns;
            see :meth:`esplug.hookspecs.TaskSpec.turn`. The reward function may then take ``messages``, too.
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
        callbacks: Sequence[object] = (),
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
        turn_function: Callable[..., Any] | None = None,
        **settings: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in RunConfig.model_fields}
        config = make_config({"task": "custom"}, given, {"n_iterations": num_iterations, "seed": global_seed}, settings)
        functions = reward_function, template_function
        self._setup(config, *functions, train_dataloader, eval_dataloader_dict, callbacks, turn_function)

    @classmethod
    def from_config(
        cls,
        config: RunConfig,
        reward_function: Callable[..., Any] | None,
        template_function: Callable[[Any], Prompt] | None,
        train_dataloader: Iterable[Batch] | None,
        eval_dataloader_dict: Mapping[str, Iterable[Batch]] | None,
        callbacks: Sequence[object] = (),
        turn_function: Callable[..., Any] | None = None,
    ) -> Self:
        """Make a trainer from a validated configuration."""
        trainer, functions = cls.__new__(cls), (reward_function, template_function)
        trainer._setup(config, *functions, train_dataloader, eval_dataloader_dict, callbacks, turn_function)
        return trainer

    def _setup(
        self,
        config: RunConfig,
        reward_function: Callable[..., Any] | None,
        template_function: Callable[[Any], Prompt] | None,
        train_dataloader: Iterable[Batch] | None,
        eval_dataloader_dict: Mapping[str, Iterable[Batch]] | None,
        callbacks: Sequence[object],
        turn_function: Callable[..., Any] | None,
    ) -> None:
        self.config = config
        self.reward_function = check_inputs(config, reward_function, train_dataloader)
        self.template_function = template_function
        self.turn_function, self.max_turns = turn_function, max_turns(config, turn_function)
        self.train_dataloader = train_dataloader
        self.eval_dataloader_dict = dict(eval_dataloader_dict or {})
        self.evaluations: list[Evaluation] = []
        self.checksum = 0
        self._callbacks = callback_hooks(callbacks)
        self._stop: Stop | None = None
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
                if self._stop:
                    break
                self.train_step(iteration)
                self.recorder.checkpoint_if_due(iteration + 1)
                self.progress.iteration_done()
                if self._stop:
                    break
            updates = len(self.history.steps)
            if config.n_iterations:  # before the evaluation, which may fail
                model = self.recorder.final_model(updates)
            if not self.evaluations or self.evaluations[-1].iteration < updates:
                self.eval_step(updates)
        seconds = time.perf_counter() - started
        unchanged = why_unchanged(self.history.base or 0, self.history.steps)
        outcome = self.evaluations, model, self.checksum, self._plan, seconds, unchanged, self._stop
        result = RunResult(self.run_dir.path, *outcome)
        if summary:
            print_summary(result, tables="console" in config.logging)
        return result

    def train_step(self, iteration: int) -> None:
        """Make one update from the next batch."""
        config, began, started = self.config, time.time(), time.perf_counter()
        questions, targets = next(self._prompts.batches)
        members = population(config.seed, iteration, config.population_size, antithetic=config.antithetic)
        self.progress.begin(f"iteration {iteration + 1}", len(members))
        result = self.evaluate_population_on_batch(members, questions, targets)
        self._anomalies.check_grades(result.grades)

        utilities = shaped(self._shape, config.reward_shaping, result.rewards)
        if config.normalize_utilities:
            utilities = update.normalized(utilities)
        coefficients = update.coefficients(config.alpha_at(iteration), utilities, members)
        evaluated = time.perf_counter()
        step = make_update(config, self.engines, self.history, iteration, coefficients, self.checksum)
        updated = time.perf_counter()
        self.checksum = step.checksum
        samples = some_answers(result, questions, targets, self._prompts.builder.text)
        record = Iteration(members, result, utilities, began, updated - started, updated - evaluated, samples)
        self._request_stop(self.recorder.iteration(step, record))

    def evaluate_population_on_batch(
        self, members: Sequence[Member], questions: Sequence[Any], targets: Sequence[Any]
    ) -> PopulationResult:
        """Generate every member's answer to every question, and grade answers while engines generate.

        All members use the same sampling seeds, so that their rewards differ by their weights only.
        """
        started = time.perf_counter()
        answered: dict[int, tuple[Generation, PendingRewards]] = {}
        prompts = self._prompts.builder.prompts(questions) if self.turn_function else []
        for i, generation in self._generate(self._jobs(members, questions), lambda _: (prompts, targets)):
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
        if not self._prompts.evaluator.splits:
            return None
        started = time.perf_counter()
        splits, grades = self._prompts.evaluator.evaluate(
            self._generate, self._grade, self.progress, f"evaluation {iteration}"
        )
        self._anomalies.check_grades(grades)
        self._anomalies.check_outputs(sample.output for split in splits for sample in split.samples)
        evaluation = Evaluation(iteration, splits, time.perf_counter() - started)
        best = max((earlier.mean for earlier in self.evaluations), default=np.inf)
        self.evaluations.append(evaluation)
        if self.config.save_best_models and evaluation.mean > best:
            self.recorder.best_model(f"{self.config.run_name}-mean{evaluation.mean:.4f}")
        reason = self.recorder.evaluation(self.evaluations)
        self._request_stop(early_stop(self.config, self.evaluations) or reason)
        about = self.checksum, self._plan, self._stop, self.max_turns
        self.recorder.results(evaluation, self._prompts.evaluator.splits, *about)
        return evaluation

    def _request_stop(self, stop: Stop | str | None) -> None:
        """End the run before its next update, for the first of several reasons, unless it was the last one anyway."""
        if stop and not self._stop and len(self.history.steps) < self.config.n_iterations:
            self._stop = Stop(stop) if isinstance(stop, str) else stop

    def _jobs(self, members: Sequence[Member], questions: Sequence[Any]) -> Iterator[Job[int]]:
        """Make the members' jobs: the same prompts with the same sampling seeds."""
        prompts, ends = self._prompts.builder.encode(questions), self._prompts.builder.encoder.end_tokens
        sigma = self.config.sigma_at(len(self.history.steps))
        return population_jobs(self.config, members, prompts, ends, sigma, len(self.engines))

    def _generate(self, jobs: Iterable[Job[int]], rows: Rows) -> Iterator[tuple[int, Generation]]:
        """Let the engines answer jobs, or carry on the conversations that they begin, in a task of several turns."""
        if self.turn_function is None:
            return self.engines.run(jobs)
        turns = self._prompts.builder.encoder, self._reward_pool, self.max_turns
        return Dialogues[int](*turns, rows).run(self.engines, jobs)

    def _grade(self, generation: Generation, targets: Sequence[Any]) -> PendingRewards:
        """Start grading answers; those of a model that computed NaN or infinity fail without grading."""
        if generation.undefined:
            why = f"the model gave NaN or infinity for {generation.undefined} tokens, so its answers mean nothing"
            return PendingRewards.failed(len(targets), UNDEFINED, why)
        outputs = [completion.text for completion in generation.completions]
        conversations = [generation.conversations] if self.turn_function else []
        return self._postprocess_outputs(outputs, targets, *conversations)

    def _postprocess_outputs(
        self, outputs: list[str], targets: Sequence[Any], conversations: Sequence[Conversation] | None = None
    ) -> PendingRewards:
        """Send answers to the graders. Called as soon as an engine has generated them.

        In a task of several turns, it also gets the conversations, of which the outputs are the last answers.
        """
        return self._reward_pool.submit(outputs, targets, conversations)

    # --- start and end of a run -------------------------------------------------------------------------

    def _open(self, stack: ExitStack, resume: Path | None, allow_change: bool) -> None:
        """Set up the run: cheap checks first, engines last."""
        require_installation()
        requested, self._resume, self._stop, log = self.config, resume, None, None
        self._running, self.checksum = False, 0
        if resume:
            self.run_dir, log, self.config = reopen(resume, requested, allow_change=allow_change, stack=stack)
        else:
            RunDirectory.check(requested)
        config, first = self.config, len(log.steps) if log else 0
        self._iterations = range(first, config.n_iterations)
        self._shape = plugins.load("shaping", config.reward_shaping).shape
        self.loggers = LoggerSet(config.logging, callbacks=self._callbacks)
        self._model = find_model(config, resume, log, stack)
        functions = self.reward_function, self.turn_function
        self._reward_pool, self._plan, encoder = start_graders_and_ray(config, *functions, self._model, stack)
        builder = PromptBuilder(encoder, self.template_function)
        data = self.train_dataloader, self.eval_dataloader_dict
        self._prompts = check_prompts(config, self._model, self._plan, builder, *data, first)
        check_metric(config, self._prompts.evaluator.splits, several_turns=self.turn_function is not None)
        if self.turn_function and self._prompts.some_prompts:
            encoder.check_turns(self._prompts.some_prompts[0])
        self._try_reward()
        surroundings = self._prompts.surroundings(self._plan)
        self._open_directory(stack, surroundings, allow_change)
        warn_of_slow_types(config, self._plan)
        say(f"{self._plan.describe()}; loading {self._model.folder.name}")
        self.engines = self.launch_engines()
        stack.callback(self.engines.close)
        self.history, found = start_engines(self.engines, config, self.run_dir, self._model.folder, log)
        self.checksum = weights_hash(self._model.folder) if self._model.kind.quantised else found.checksum
        if log is None and config.n_iterations:
            log = stack.enter_context(create_seed_log(config, self.run_dir, self._model.folder, found.base))
        self.recorder = Recorder(config, self.run_dir, self.loggers, log, self.engines, self._model.folder)
        self.evaluations = past_evaluations(self.run_dir, self._prompts.evaluator.splits, config, first)
        if resume and log:  # only now is it known that the new settings work
            note_changes(self.run_dir, requested, surroundings, log)
        self._running = True
        progress = LiveProgress(config.n_iterations, first, enabled="console" in config.logging)
        self.progress = stack.enter_context(progress)

    def _try_reward(self) -> None:
        """Wait for the graders, and check that the reward function can grade, unless a subclass grades otherwise."""
        self._reward_pool.ready()
        targets, own = self._prompts.some_targets, EvolutionStrategiesTrainer._postprocess_outputs
        if targets and type(self)._postprocess_outputs is own:
            try_reward(self._reward_pool, targets, self._prompts.some_prompts if self.turn_function else None)

    def _open_directory(self, stack: ExitStack, surroundings: dict[str, Any], allow_change: bool) -> None:
        """Create the run directory, or compare a resumed run's environment with the present one; start the loggers."""
        if self._resume:
            check_environment(self.run_dir, surroundings, allow_change=allow_change)
            say(f"resuming at iteration {self._iterations.start} of {self.config.n_iterations}")
        else:
            self.run_dir = RunDirectory.create(self.config, surroundings, stack)
        stack.push(self._finish)
        self.run_dir.write_status("running")
        self.loggers.start(self.config, self.run_dir.path, self._iterations.start)

    def launch_engines(self) -> EnginePool:
        """Make the engine pool, which the trainer then starts."""
        config, plan, model, caching = self.config, self._plan, self._model, self._prompts.prefix_caching
        settings = engine_settings(config, plan, model.folder, model.kind, prefix_caching=caching)
        return self.pool(
            plan,
            settings,
            model.engine_bytes,
            cpu_kv_cache_most(model.folder, config),
            self.run_dir.path,
            timeout=config.engine_timeout,
            max_restarts=config.max_restarts,
            ship_model=config.ship_model,
            min_engines=config.min_engines,
            resource=config.engine_resource,
        )

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the loggers, write the status, and remove the directory of a new run that could not start."""
        updates = len(self.history.steps) if self._running else self._iterations.start
        end = run_end(error, self._stop, updates, self.checksum, self.run_dir.path)
        self.loggers.run_end(end)
        self.loggers.finish("finished" if end.status == "stopped" else end.status)
        self.run_dir.write_status(end.status, error, None if error else self._stop)
        if isinstance(error, UserError) and not self._running and not self._resume:
            shutil.rmtree(self.run_dir.path, ignore_errors=True)
        elif error is not None:
            hint = f"; to resume: {self.config.how_to_resume(self.run_dir.path)}" if self.config.n_iterations else ""
            say(f"{end.status}; see {self.run_dir.path}{hint}")

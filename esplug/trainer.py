"""The training loop: perturb, answer, grade, shape, update, evaluate."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from esplug.checkpoints.base_model import longest_prompt, revision_of, weights_size
from esplug.checkpoints.folders import newest_first, rename_aside
from esplug.checkpoints.history import History
from esplug.checkpoints.seed_log import Base, Header, SeedLog, Step, movement
from esplug.checkpoints.starting_model import starting_model
from esplug.config import RunConfig, make_config
from esplug.data.batches import Batches
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.prompts import Batch, PromptBuilder
from esplug.doctor.installation import require_installation
from esplug.engines.cluster import Cluster
from esplug.engines.messages import EngineSettings, Generation, Sampling, Weights
from esplug.engines.pool import EnginePool, Job
from esplug.errors import RunError, UserError
from esplug.es.members import Member, population
from esplug.es.update import FloatArray, coefficients
from esplug.evaluation.evaluator import Evaluator
from esplug.evaluation.figures import Evaluation
from esplug.hookspecs import Prompt
from esplug.loggers.logger_set import LoggerSet
from esplug.planning import shared_prefix as prefix
from esplug.planning.memory import cpu_items, cpu_kv_cache_most
from esplug.planning.placement import plan_engines
from esplug.plugins import registry
from esplug.rewards.anomalies import UNDEFINED, AnomalyReporter
from esplug.rewards.pool import PendingRewards, RewardPool
from esplug.runs.directory import RunDirectory, environment
from esplug.runs.metrics import PopulationResult, iteration_record, train_metrics
from esplug.runs.recorder import Recorder
from esplug.runs.result import RunResult
from esplug.runs.results_json import results
from esplug.runs.resume import check_environment, note_changes, past_evaluations, reopen
from esplug.runs.trace import trace
from esplug.utils.console import get_console
from esplug.utils.progress import LiveProgress


class EvolutionStrategiesTrainer:
    """Fine-tunes a model with Evolution Strategies. Construct it, then call :meth:`fit`.

    Arguments not listed are the fields of :class:`esplug.config.RunConfig` of the same name.

    Args:
        reward_function: ``(model_output, target)`` to a float, ``(label, float)`` or :class:`esplug.hookspecs.Reward`.
            May be a ``functools.partial``. Runs in processes that are killed at ``reward_function_timeout``.
        train_dataloader: any iterable of ``(prompts, targets)`` batches: a list, a torch ``DataLoader``. It
            is started over when it ends, and its batches are taken as they are, whatever ``batch_size`` says.
        template_function: from a question to the prompt (text or chat messages), in training and evaluation.
        eval_dataloader_dict: split name to an iterable of batches.
        num_iterations: updates to make; 0 only evaluates.
        global_seed: seed of everything random.
        settings: any other field of :class:`esplug.config.RunConfig`, such as ``antithetic``.

    Attributes:
        pool: class of the pool of engines.

    Raises:
        UserError: a setting is out of range or unknown.
    """

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
        if reward_function is None:
            raise UserError("reward_function is missing: give a function (model_output, target) -> float")
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
        self._watch = AnomalyReporter()
        self._under_way = False

    # --- the loop ---------------------------------------------------------------------------------------

    def fit(self, resume: str | Path | None = None, *, allow_change: bool = False) -> RunResult:
        """Evaluate, make ``num_iterations`` updates, evaluate, save.

        Args:
            resume: directory of an interrupted run to go on with, in that directory. Seeds, the order of the data
                and the best evaluation go on too, so that the weights become those of a run never interrupted; a
                ``train_dataloader`` must give the same batches again, which one that shuffles without a seed does not.
            allow_change: go on even if a setting, or the data, that decides what is computed is another now.

        Raises:
            UserError: something the user can mend, found before anything is trained.
            RunError: the run had to stop.
        """
        started, model = time.perf_counter(), None
        with ExitStack() as stack:
            self._open(stack, Path(resume).expanduser() if resume else None, allow_change)
            config, first = self.config, len(self.history.steps)
            for iteration in range(first, config.n_iterations):
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
        return RunResult(self.run_dir.path, self.evaluations, model, self.checksum, self._plan, seconds)

    def train_step(self, iteration: int) -> None:
        """Make one update from the next batch."""
        config, began, started = self.config, time.time(), time.perf_counter()
        questions, targets = next(self._batches)
        members = population(config.seed, iteration, config.population_size, antithetic=config.antithetic)
        self.progress.begin(f"iteration {iteration + 1}", len(members))

        result = self.evaluate_population_on_batch(members, questions, targets)
        self._watch.grades(result.grades)
        utilities = self._utilities(result.rewards)
        steps = coefficients(config.alpha_at(iteration), utilities, members)
        if not np.isfinite(steps).all():
            raise RunError(f"{config.reward_shaping!r} makes utilities of these rewards that are too large for float32")

        answered = time.perf_counter()
        step = Step(iteration, tuple(steps), config.antithetic, self.checksum, config.momentum)
        seeds, moved_by = movement([*self.history.steps, step], config.seed)
        if not any(steps):
            what = "only momentum moves the weights" if seeds else "no update"
            get_console().print(f"iteration {iteration}: every utility is zero (all rewards equal?), so {what}")
        if seeds:
            self.checksum = self.engines.update(seeds, moved_by)
            step = replace(step, checksum=self.checksum)
        updated = time.perf_counter()
        self.history.append(step)

        metrics = train_metrics(result, len(self.engines), antithetic=config.antithetic)
        metrics |= {"time/update": updated - answered, "time/iteration": updated - started}
        metrics |= {"train/sigma": config.sigma_at(iteration), "train/alpha": config.alpha_at(iteration)}
        record = iteration_record(iteration, members, utilities, steps, result, metrics, self.checksum)
        self.recorder.iteration(step, record, metrics)
        if iteration == config.profile:
            phases = {
                "generate": answered - started - result.grade_seconds,
                "wait for grades": result.grade_seconds,
                "update": updated - answered,
                "record": time.perf_counter() - updated,
            }
            self.recorder.profile(iteration, trace(members, result, began, phases))

    def evaluate_population_on_batch(
        self, members: Sequence[Member], questions: Sequence[Any], targets: Sequence[Any]
    ) -> PopulationResult:
        """Let every member answer every question, and grade while the engines go on.

        All members answer with the same sampling seeds, so that luck does not tell them apart.
        """
        started = time.perf_counter()
        generations: dict[int, Generation] = {}
        pending: dict[int, PendingRewards] = {}
        for i, generation in self.engines.run(self._jobs(members, questions)):
            generations[i] = generation
            pending[i] = self._grade(generation, targets)
            self.progress.advance()
        self._watch.answers(completion.text for each in generations.values() for completion in each.completions)
        answered = time.perf_counter()
        graded = [pending[i].result() for i in range(len(members))]
        return PopulationResult(
            rewards=np.array([[grade.reward.value for grade in row] for row in graded]),
            graded=graded,
            generations=[generations[i] for i in range(len(members))],
            generate_seconds=answered - started,
            grade_seconds=time.perf_counter() - answered,
        )

    def eval_step(self, iteration: int) -> Evaluation | None:
        """Evaluate the current weights on every split, spread over all engines.

        Returns:
            The evaluation, or ``None`` without evaluation data.
        """
        if not self._evaluator.splits:
            return None
        started = time.perf_counter()
        splits, grades = self._evaluator.evaluate(self.engines, self._grade, self.progress, f"evaluation {iteration}")
        self._watch.grades(grades)
        self._watch.answers(sample.output for split in splits for sample in split.samples)
        evaluation = Evaluation(iteration, splits, time.perf_counter() - started)
        self._record(evaluation)
        return evaluation

    # --- points to override -----------------------------------------------------------------------------

    def launch_engines(self) -> EnginePool:
        """Make the pool of engines, which the trainer then starts."""
        settings = EngineSettings(
            model=str(self._model),
            dtype=self.config.dtype,
            master_dtype=self.config.master_dtype,
            master_device=self.config.master_device,
            device=self._plan.device,
            tensor_parallel_size=self.config.n_gpu_per_vllm_engine,
            max_model_len=self.config.max_model_len,
            memory_share=self.config.gpu_memory_utilization,
            low_rank=self.config.low_rank,
            members_at_once=self.config.members_at_once(self._plan.n_engines),
            engines_per_gpu=self._plan.engines_per_gpu,
            prefix_caching=self._prefix_caching,
        )
        return self.pool(
            self._plan,
            settings,
            self._engine_bytes,
            cpu_kv_cache_most(self._model, self.config),
            self.run_dir.path,
            timeout=self.config.engine_timeout,
            max_restarts=self.config.max_restarts,
        )

    def _postprocess_outputs(self, outputs: list[str], targets: Sequence[Any]) -> PendingRewards:
        """Hand answers to the graders; called as soon as an engine has answered."""
        return self._reward_pool.submit(outputs, targets)

    # --- opening and closing ----------------------------------------------------------------------------

    def _open(self, stack: ExitStack, resume: Path | None, allow_change: bool) -> None:
        """Check what can be checked cheaply, start Ray, check the prompts, and start the engines."""
        require_installation()
        log: SeedLog | None = None
        self._resumed = resume is not None
        asked, runs = self.config, Path(self.config.output_directory).expanduser()
        if resume:
            self.run_dir, log, self.config = reopen(resume, asked, allow_change=allow_change, stack=stack)
            runs = resume.absolute().parent
        else:
            RunDirectory.check(asked)
        config, first = self.config, len(log.steps) if log else 0
        self._shape = registry.load("shaping", config.reward_shaping).shape
        self.loggers = LoggerSet(config.logging)
        self._model = starting_model(
            config.model_name,
            config.checkpoint,
            log.header.base.revision if log else None,
            runs.absolute(),  # where engines on other machines see it too
            stack,
        )
        self._engine_bytes = sum(item.nbytes for item in cpu_items(self._model, config))
        longest_prompt(self._model, config.max_model_len, config.max_tokens)
        # What takes seconds, at once: transformers, Ray and the graders.
        helper = ThreadPoolExecutor(1)
        loading = helper.submit(PromptEncoder.load, self._model, config.max_model_len, config.max_tokens)
        helper.shutdown(wait=False)
        self._reward_pool = RewardPool(
            self.reward_function, timeout=config.reward_function_timeout, memory=config.reward_memory
        )
        stack.callback(self._reward_pool.close)
        self._reward_pool.begin()
        cluster = Cluster(config.ray_address, config.use_gpus)
        stack.callback(cluster.close)
        self._plan = plan_engines(config, cluster.resources(), self._engine_bytes)
        encoder = loading.result()
        self._questions = PromptBuilder(encoder, self.template_function)
        splits = {name: self._questions.split(name, loader) for name, loader in self.eval_dataloader_dict.items()}
        asked_together = [split.prompts for split in splits.values()]
        train_data = None
        if isinstance(self.train_dataloader, Batches):  # all rows are here: no bad one may stop the run later
            train_data = self._questions.fingerprint(self.train_dataloader)
        if self.train_dataloader is not None and config.n_iterations:
            prompts, self._batches = self._questions.batches(self.train_dataloader, first)
            asked_together.append(prompts)
        self._prefix_caching = self._shares_prefixes(asked_together)
        self._reward_pool.ready()
        self._evaluator = Evaluator(config, splits, self._plan.device, encoder.turn_ends)
        surroundings = environment() | {"engines": asdict(self._plan), "train_data": train_data}
        if resume:
            check_environment(self.run_dir, surroundings, allow_change=allow_change)
            get_console().print(f"going on at iteration {first} of {config.n_iterations}", markup=False)
        else:
            self.run_dir = RunDirectory.create(config, surroundings, stack)
        stack.push(self._finish)
        self.run_dir.write_status("running")
        self.loggers.start(config, self.run_dir.path, first)
        get_console().print(f"{self._plan.describe()}; loading {self._model.name}", markup=False)
        self.engines = self.launch_engines()
        stack.callback(self.engines.close)
        log = self._start_engines(log, stack)
        self.recorder = Recorder(config, self.run_dir, self.loggers, log, self.engines, self._model)
        self.evaluations = past_evaluations(self.run_dir, splits, config, first)
        if resume and log:  # not before it is known that these settings work
            note_changes(self.run_dir, asked, surroundings, log)
        self._under_way = True
        self.progress = stack.enter_context(
            LiveProgress(config.n_iterations, first, enabled="console" in config.logging)
        )

    def _shares_prefixes(self, asked_together: Sequence[Sequence[Sequence[int]]]) -> bool:
        """Whether engines keep what prompts begin with, given those of some batches: on a CPU always."""
        if self._plan.device == "cpu" or self.config.eval_n_samples > 1:
            return True
        weights = weights_size(self._model)[1]
        return any(prefix.pays(prompts, self.config.max_tokens, weights) for prompts in asked_together)

    def _start_engines(self, log: SeedLog | None, stack: ExitStack) -> SeedLog | None:
        """Start the engines, and the seed log of a new run. Returns the log; ``None`` where nothing is trained."""
        config, base = self.config, log.header.base if log else None
        self.history = History(
            config.seed,
            base.weights_checksum if base else None,
            tuple(log.steps) if log else (),
            lambda: [(k, str(folder.absolute())) for k, folder in newest_first(self.run_dir.checkpoints)],
        )
        found = self.engines.start(self.history)
        if found.undefined:
            raise UserError(
                f"{self._model}: {len(found.undefined)} tensors hold NaN or infinity, {found.undefined[0]} first; "
                "fetch or train the model again"
            )
        for folder, reason in found.damaged:
            aside = rename_aside(Path(folder), "damaged").name
            get_console().print(
                f"passed over a checkpoint: {folder}: {reason}; it is now called {aside}", markup=False, soft_wrap=True
            )
        if base and found.base != base.weights_checksum:
            raise UserError(
                f"{self._model}: not the model that the run started from ({base.name}): its weights have checksum "
                f"{found.base:016x}, the run's had {base.weights_checksum:016x}; name the right one with --model-name"
            )
        if found.checksum != (self.history.checksum or found.base):
            raise RunError(
                f"replaying {found.replayed} updates gave weights with checksum {found.checksum:016x} instead of "
                f"{self.history.checksum:016x}; was the run made with another version of esplug?"
            )
        self.history.base, self.checksum = found.base, found.checksum
        if log is None and config.n_iterations:
            named = Base(config.checkpoint or config.model_name, revision_of(self._model), found.base)
            settings = config.model_dump(exclude_none=True)
            header = Header(named, config.master_dtype, config.seed, settings, config.rank)
            log = stack.enter_context(SeedLog.create(self.run_dir.seed_log, header))
        return log

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Close the loggers; remove the directory of a run that could not start."""
        status = "finished" if kind is None else "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.loggers.finish(status)
        self.run_dir.write_status(status, error)
        if isinstance(error, UserError) and not self._under_way and not self._resumed:
            shutil.rmtree(self.run_dir.path, ignore_errors=True)
        elif error is not None:
            hint = f"; to go on: {self.config.how_to_resume(self.run_dir.path)}" if self.config.n_iterations else ""
            get_console().print(
                f"{status}; what there is lies in {self.run_dir.path}{hint}", markup=False, soft_wrap=True
            )

    # --- small steps ------------------------------------------------------------------------------------

    def _jobs(self, members: Sequence[Member], questions: Sequence[Any]) -> Iterator[Job[int]]:
        """Make the members' work: the same prompts with the same sampling seeds."""
        config, sigma = self.config, self.config.sigma_at(len(self.history.steps))
        prompts = self._questions.encode(questions)
        sampling = Sampling(
            config.max_tokens,
            config.train_temperature,
            config.train_top_p,
            tuple(config.stop),
            self._questions.encoder.turn_ends,
        )
        seeds = [(members[0].seed + position) % 2**63 for position in range(len(prompts))]
        size = config.members_at_once(len(self.engines))
        for first in range(0, len(members), size):
            together = members[first : first + size]
            weights = [Weights(member.seed, member.sign * sigma) for member in together]
            keys = range(first, first + len(together))
            yield Job(keys, weights, prompts, seeds, sampling, config.mini_batch_size)

    def _utilities(self, rewards: FloatArray) -> FloatArray:
        utilities = np.asarray(self._shape(rewards=rewards), dtype=np.float64)
        if utilities.shape != (len(rewards),) or not np.isfinite(utilities).all():
            raise RunError(
                f"reward shaping {self.config.reward_shaping!r} must return {len(rewards)} finite utilities, "
                f"not {utilities.tolist()}"
            )
        return utilities

    def _grade(self, generation: Generation, targets: Sequence[Any]) -> PendingRewards:
        """Have answers graded, unless they come from a model whose output is not even numbers."""
        if generation.undefined:
            why = f"the model gave NaN or infinity for {generation.undefined} tokens, so its answers mean nothing"
            return PendingRewards.failed(len(targets), UNDEFINED, why)
        return self._postprocess_outputs([completion.text for completion in generation.completions], targets)

    def _record(self, evaluation: Evaluation) -> None:
        """Write and log an evaluation, and save the model if it is the best one yet."""
        best = max((earlier.mean for earlier in self.evaluations), default=np.inf)
        self.evaluations.append(evaluation)
        if self.config.save_best_models and evaluation.mean > best:
            self.recorder.best_model(f"{self.config.run_name}-mean{evaluation.mean:.4f}")
        splits = self._evaluator.splits
        self.recorder.evaluation(
            evaluation, results(self.config, self._model, self.checksum, self._plan, splits, evaluation)
        )

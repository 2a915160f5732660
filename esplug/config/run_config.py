"""``RunConfig``: all settings of a run, each declared once.

A new setting is a new field here. Its flag, its help, its key in a TOML file and its keyword argument in Python follow
from the field; afterwards run ``python -m scripts.settings_tables``, which updates ``docs/settings.md``.
"""

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from esplug.config import validation
from esplug.config.fields import ENGINES, ES, EVALUATION, GENERATION, MODEL, OUTPUT, TASK, count, number, setting
from esplug.config.recipes import STEPS, Recipe
from esplug.config.sources import read_options
from esplug.es.schedules import Schedule, scheduled
from esplug.noise.low_rank import MAX_RANK

MAX_SEED = 2**64 - 1
_MAX_MEMBERS_PER_BATCH = 64  # unless the user asks for more: they keep a GPU busy


class RunConfig(BaseModel):
    """All settings of a run. Construct it with :func:`make_config` to get one-line errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    task: str = setting("countdown", "Task plugin (`esplug plugins` lists them).", TASK)
    task_options: dict[str, Any] = setting({}, "Task option, as key=value. Repeatable.", TASK, flag="--task-option")
    train_dataset: str | None = setting(
        None,
        "Training rows: DatasetDict folder, .json, .jsonl, .csv or .parquet file, or Hub id[:config][@revision].  "
        "[default: the task's own]",
        TASK,
    )
    eval_dataset: str | None = setting(
        None,
        "Evaluation rows: DatasetDict folder, folder of DatasetDict folders, .json, .jsonl, .csv or .parquet file, or "
        "Hub id[:config][@revision]; separate several with commas.  [default: the task's own]",
        TASK,
    )
    reward_function_timeout: float = number(
        10.0, "Time limit for grading one answer, in seconds.", TASK, gt=0, le=86400
    )
    reward_memory: float = number(4.0, "Memory limit of each grading process, in GiB.", TASK, ge=0.25, le=1_000_000)

    model_name: str = setting("Qwen/Qwen2.5-1.5B-Instruct", "Base model: folder or Hugging Face id[@revision].", MODEL)
    checkpoint: str | None = setting(
        None,
        "Start from the weights in this Hugging Face folder, run directory, seed log or ES-at-Scale .pth file.  "
        "[default: the base model's]",
        MODEL,
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto",
        "Dtype that the engines compute in; 'auto' is vLLM's choice: the checkpoint's dtype, or 16 bits for float32.",
        MODEL,
    )
    master_dtype: Literal["float32", "model"] = setting(
        "float32",
        "Dtype of the master weights; 'model' halves their memory but rounds small updates away.",
        MODEL,
    )
    max_model_len: int | None = count(
        None, "Maximum length of prompt plus answer, in tokens.  [default: the model's own]", MODEL, ge=8
    )

    recipe: Recipe = setting(
        "paper",
        "Defaults of alpha and its schedule: 'paper' as in ES-at-Scale, or 'fast' with larger steps and cosine decay.",
        ES,
    )
    sigma: float = number(0.001, "Standard deviation of the perturbations.", ES, gt=0, le=10)
    alpha: float | None = number(None, "Step size.  [default: sigma/2; 2 sigma with --recipe fast]", ES, gt=0, le=10)
    population_size: int = setting(30, "Members per iteration (N).", ES, ge=2, le=1_000_000)
    n_iterations: int = count(300, "Number of updates; 0 evaluates without training.", ES, ge=0)
    antithetic: bool = setting(False, "Draw members in mirrored pairs, +eps and -eps.", ES)
    sigma_schedule: Schedule = setting("constant", "How sigma changes over the run, to --sigma-end.", ES)
    sigma_end: float | None = number(None, "Final sigma of --sigma-schedule.  [default: sigma/10]", ES, gt=0, le=10)
    alpha_schedule: Schedule = setting("constant", "How alpha changes over the run, to --alpha-end.", ES)
    alpha_end: float | None = number(None, "Final alpha of --alpha-schedule.  [default: alpha/10]", ES, gt=0, le=10)
    momentum: float = number(
        0.0,
        "Share of the last movement that each update repeats. It is replayed from seeds, so that one update costs "
        "about log(0.01)/log(momentum) updates.",
        ES,
        ge=0,
        le=0.99,
    )
    perturbation: Literal["full", "low-rank"] = setting(
        "full",
        "'full' perturbs every weight; 'low-rank' only those of linear layers, and one batch serves many members.",
        ES,
    )
    rank: int | None = setting(
        None,
        "Rank of the noise with --perturbation low-rank; memory is reserved for rank 1, 8, 16, 32 or 64.  [default: 1]",
        ES,
        ge=1,
        le=MAX_RANK,
    )
    reward_shaping: str = setting("z-scores", "Shaping plugin that turns rewards into utilities.", ES)

    batch_size: int = count(512, "Prompts per iteration, at most the size of the data set.", GENERATION, ge=1)
    mini_batch_size: int = count(
        512,
        "Prompts that an engine answers at a time; in 16 bits, the size can change how answers are rounded.",
        GENERATION,
        ge=1,
    )
    members_per_batch: int | None = setting(
        None,
        "Members that an engine decodes together with --perturbation low-rank.  [default: its share of the population, "
        "at most 64]",
        GENERATION,
        ge=1,
        le=1024,
    )
    max_tokens: int = count(512, "Maximum length of an answer, in tokens.", GENERATION, ge=1)
    train_temperature: float = number(0.0, "Sampling temperature in training; 0 is greedy.", GENERATION, ge=0, le=100)
    train_top_p: float = number(1.0, "Nucleus sampling (top-p) in training.", GENERATION, gt=0, le=1)
    stop: list[str] = setting([], "Text that ends an answer and is kept in it. Repeatable.", GENERATION)
    seed: int = setting(42, "Seed of all randomness in the run.", GENERATION, ge=0, le=MAX_SEED)

    eval_splits: list[str] = setting(
        [], "Splits to evaluate, separated by commas.  [default: all]", EVALUATION, eval_flag="--splits"
    )
    eval_limit: int | None = count(
        None,
        "Evaluate only this many rows of each split, from its start.  [default: all]",
        EVALUATION,
        eval_flag="--limit",
        ge=1,
    )
    eval_temperature: float = number(
        0.0, "Sampling temperature in evaluations; 0 is greedy.", EVALUATION, eval_flag="--temperature", ge=0, le=100
    )
    eval_top_p: float = number(
        1.0, "Nucleus sampling (top-p) in evaluations.", EVALUATION, eval_flag="--top-p", gt=0, le=1
    )
    eval_n_samples: int = setting(
        1, "Answers to sample for each evaluation prompt.", EVALUATION, eval_flag="--n-samples", ge=1, le=10_000
    )
    pass_k: list[int] = setting(
        [1], "Values of k for pass@k (unbiased), separated by commas: 1,4,8.", EVALUATION, eval_flag="--pass-k"
    )
    max_reward: float = number(
        1.0, "Reward from which an answer passes, if the task does not say which answers are correct.", EVALUATION
    )

    n_vllm_engines: int | None = count(None, "Number of vLLM engines.  [default: all that fit]", ENGINES, ge=1)
    n_gpu_per_vllm_engine: int = count(
        1, "GPUs (on a CPU: processes) that one engine spans with tensor parallelism.", ENGINES, ge=1
    )
    n_vllm_engines_per_gpu: int = setting(
        1,
        "Engines that share one GPU; several speed up small models, where vLLM's overhead leaves the GPU idle.",
        ENGINES,
        ge=1,
        le=16,
    )
    use_gpus: str | None = setting(
        None, "GPUs to use: indices such as 0,1, or 'none' for the CPU.  [default: all]", ENGINES
    )
    master_device: Literal["auto", "gpu", "host"] = setting(
        "auto",
        "Where a GPU engine keeps its master weights: on the 'gpu', or in 'host' memory, from which they are streamed; "
        "'auto' is the GPU if they fit beside vLLM.",
        ENGINES,
    )
    gpu_memory_utilization: float | None = number(
        None,
        "Share of memory for the engines.  [default: 0.9 of each GPU, 0.7 if engines share it, less if that makes room "
        "for master weights; 0.5 of the free memory on a CPU]",
        ENGINES,
        gt=0,
        le=1,
    )
    ray_address: str | None = setting(
        None, "Address of the Ray cluster to use, or 'auto'.  [default: a local cluster]", ENGINES
    )
    engine_timeout: float = number(
        600.0,
        "Seconds without progress after which an engine is replaced; loading a model does not count.",
        ENGINES,
        ge=1,
        le=86400,
    )
    max_restarts: int = count(10, "Engines to replace before the run fails.", ENGINES, ge=0)

    eval_freq: int = count(5, "Evaluate every so many iterations; 0 only before and after training.", OUTPUT, ge=0)
    logging: list[str] = setting(
        ["console", "jsonl"], "Logger plugins, separated by commas; jsonl is always added.", OUTPUT
    )
    output_directory: str = setting("./experiments/", "Folder for run directories.", OUTPUT)
    experiment_name: str | None = setting(None, "Name of the run directory.  [default: made from the settings]", OUTPUT)
    save_best_models: bool = setting(False, "Save the model at every new best evaluation mean.", OUTPUT)
    checkpoint_every: int = count(
        0,
        "Save the weights every so many iterations, so that resuming need not replay the seed log; 0 never.",
        OUTPUT,
        ge=0,
    )
    keep_checkpoints: int = count(
        2, "Number of checkpoints to keep with --checkpoint-every.", OUTPUT, flag="--keep", ge=1
    )
    profile: int | None = count(
        None, "Write a trace of this iteration, counted from 0, for ui.perfetto.dev.", OUTPUT, ge=0
    )
    wandb_project: str = setting("es-finetuning", "Project for the loggers wandb and trackio.", OUTPUT)

    _lists = field_validator("logging", "eval_splits", "pass_k", mode="before")(validation.split_list)
    _gpus = field_validator("use_gpus", mode="before")(validation.gpu_list)
    _options = field_validator("task_options", mode="before")(read_options)
    _jsonl = field_validator("logging")(validation.with_jsonl)
    _items = field_validator("logging", "eval_splits")(validation.each_one_line)
    _k = field_validator("pass_k")(validation.ascending)
    _line = field_validator(
        "task",
        "model_name",
        "checkpoint",
        "train_dataset",
        "eval_dataset",
        "reward_shaping",
        "ray_address",
        "output_directory",
        "experiment_name",
        "wandb_project",
    )(validation.one_line)
    _address = field_validator("ray_address")(validation.ray_address)
    _folder = field_validator("experiment_name")(validation.folder_name)
    _stop = field_validator("stop")(validation.no_empty_text)
    _text = field_validator("stop", "task_options")(validation.utf8)

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        """Fill in defaults that depend on other settings. In a message, ``<name>`` stands for a setting's flag."""
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma * STEPS[self.recipe])
        if self.perturbation == "low-rank" and self.rank is None:
            object.__setattr__(self, "rank", 1)
        for name in ("rank", "members_per_batch"):
            if self.perturbation == "full" and getattr(self, name) is not None:
                raise ValueError(f"<{name}> {getattr(self, name)} is for <perturbation> low-rank; give that too")
        for name in ("sigma", "alpha"):
            end, schedule = getattr(self, f"{name}_end"), getattr(self, f"{name}_schedule")
            if end is not None and schedule == "constant":
                raise ValueError(f"<{name}_end> {end:g} is for <{name}_schedule> linear or cosine; give that too")
        if self.n_vllm_engines_per_gpu > 1 and self.n_gpu_per_vllm_engine > 1:
            raise ValueError(
                "<n_vllm_engines_per_gpu> and <n_gpu_per_vllm_engine> exclude each other; give one of them"
            )
        if self.antithetic and self.population_size % 2:
            raise ValueError("<population_size> must be even with <antithetic> (members come in pairs)")
        if self.profile is not None and self.profile >= self.n_iterations > 0:
            raise ValueError(f"<profile> {self.profile}: the last iteration is {self.n_iterations - 1}")
        if self.max_model_len is not None and self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"<max_tokens> {self.max_tokens} leaves no room for a prompt: <max_model_len> is {self.max_model_len}"
            )
        k, samples = self.pass_k[-1], self.eval_n_samples
        if k > samples:
            raise ValueError(f"<pass_k> {k} needs at least {k} answers per prompt: <eval_n_samples> is {samples}")
        if samples > 1 and self.eval_temperature == 0:
            raise ValueError(
                f"<eval_n_samples> {samples} greedy answers would all be the same; give <eval_temperature>, such as 0.8"
            )
        return self

    @property
    def step_size(self) -> float:
        """Alpha, with its default filled in."""
        assert self.alpha is not None
        return self.alpha

    @property
    def low_rank(self) -> int | None:
        """Rank of the perturbations; ``None`` if they have full rank or the run makes none."""
        return self.rank if self.n_iterations else None

    def members_at_once(self, n_engines: int) -> int:
        """Return how many members an engine decodes in one batch. The batches of a population have equal sizes."""
        if self.low_rank is None:
            return 1
        if self.members_per_batch:
            return min(self.members_per_batch, self.population_size)
        share = math.ceil(self.population_size / n_engines)
        return math.ceil(share / math.ceil(share / _MAX_MEMBERS_PER_BATCH))

    def sigma_at(self, iteration: int) -> float:
        """Return the standard deviation of an iteration's perturbations."""
        return self._scheduled(self.sigma_schedule, self.sigma, self.sigma_end, iteration)

    def alpha_at(self, iteration: int) -> float:
        """Return the step size of an iteration."""
        return self._scheduled(self.alpha_schedule, self.step_size, self.alpha_end, iteration)

    def _scheduled(self, schedule: Schedule, start: float, end: float | None, iteration: int) -> float:
        done = min(1.0, iteration / max(self.n_iterations - 1, 1))
        return scheduled(schedule, start, start / 10 if end is None else end, done)

    def evaluates_at(self, iteration: int) -> bool:
        """Whether the run evaluates before an iteration; ``n_iterations`` stands for the end of the run."""
        return iteration in (0, self.n_iterations) or bool(self.eval_freq and iteration % self.eval_freq == 0)

    def how_to_resume(self, run: Path) -> str:
        """Return the command or call that resumes a run of these settings."""
        return f'trainer.fit(resume="{run}")' if self.task == "custom" else f"esplug train --resume {run}"

    @property
    def run_name(self) -> str:
        """The experiment's name, or one made from the settings."""
        if self.experiment_name:
            return self.experiment_name
        model = Path(self.model_name).name
        if self.n_iterations:
            rank = f"rank{self.rank}-" if self.rank else ""
            settings = f"{rank}sigma{self.sigma:g}-alpha{self.step_size:g}-n{self.population_size}-seed{self.seed}"
            name = f"{self.task}-{model}-{settings}"
        else:
            name = f"eval-{self.task}-{Path(self.checkpoint).name if self.checkpoint else model}"
        return name.encode()[:180].decode(errors="ignore")  # file systems count bytes

    @property
    def final_name(self) -> str:
        """Folder name of the fine-tuned model."""
        return f"checkpoint-es_fine_tuned_iteration_{self.n_iterations}"

    def to_toml(self) -> str:
        """Write the settings as a TOML file that ``--config`` reads back."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))

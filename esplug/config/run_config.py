"""``RunConfig``: all settings of a run, each declared once.

A new setting is a new field here. Its flag, its help, its key in a TOML file and its keyword argument in Python follow
from the field; afterwards run ``python -m scripts.settings_tables``, which updates ``docs/settings.md``.
"""

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from esplug.config import validation
from esplug.config.combinations import MAIN_METRIC, check_combination
from esplug.config.fields import ENGINES, ES, EVALUATION, GENERATION, MODEL, OUTPUT, TASK
from esplug.config.sources import STEPS, Recipe, read_json_options, read_options
from esplug.es.schedules import Schedule, scheduled
from esplug.noise.low_rank import MAX_RANK

MAX_SEED = 2**64 - 1
_MAX_MEMBERS_PER_BATCH = 64  # unless the user asks for more: they keep a GPU busy


class RunConfig(BaseModel):
    """All settings of a run. Construct it with :func:`make_config` to get one-line errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    task: str = TASK.setting("countdown", "Task plugin (`esplug plugins` lists them).")
    task_options: dict[str, Any] = TASK.setting({}, "Task option, as key=value. Repeatable.", flag="--task-option")
    train_dataset: str | None = TASK.setting(
        None,
        "Training rows: a folder, file or Hub id.  [default: the task's own]",
        details="A DatasetDict folder, a .json, .jsonl, .csv or .parquet file, or a Hub id[:config][@revision].",
    )
    eval_dataset: str | None = TASK.setting(
        None,
        "Evaluation rows: folders, files or Hub ids, separated by commas.  [default: the task's own]",
        details="Each as for --train-dataset, or a folder of DatasetDict folders.",
    )
    reward_function_timeout: float = TASK.number(10.0, "Time limit for grading one answer, in seconds.", gt=0, le=86400)
    reward_concurrency: int | None = TASK.setting(
        None,
        "Answers that an async reward grades at once.  [default: one per process]",
        details="Of an `async def`, over all grading processes. There are at most as many processes, also for other "
        "rewards. A task whose rewards wait for a server sets it.",
        ge=1,
        le=4096,
    )
    reward_memory: float = TASK.number(4.0, "Memory limit of each grading process, in GiB.", ge=0.25, le=1_000_000)

    model_name: str = MODEL.setting("Qwen/Qwen2.5-1.5B-Instruct", "Base model: folder or Hugging Face id[@revision].")
    checkpoint: str | None = MODEL.setting(
        None,
        "Weights to start from: folder, seed log or .pth file.  [default: the base model's]",
        details="A Hugging Face folder, a run directory, its seeds.log, or a .pth file of ES-at-Scale.",
    )
    trust_remote_code: bool = MODEL.setting(
        False, "Run Python code that the model brings, on every machine of the run; read that code first."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = MODEL.setting(
        "auto",
        "Dtype of the engines: auto, bfloat16, float16 or float32.",
        details="'auto' is vLLM's choice: the checkpoint's dtype, or 16 bits for float32.",
    )
    master_dtype: Literal["float32", "model"] = MODEL.setting(
        "float32",
        "Dtype of the master weights: float32, or the model's.",
        details="'model' halves their memory, but rounds small updates away.",
    )
    max_model_len: int | None = MODEL.count(
        None, "Maximum length of prompt plus answer, in tokens.  [default: the model's own]", ge=8
    )

    system_prompt: str | None = MODEL.setting(None, "System message of all chat prompts.  [default: the task's]")
    chat_template_options: dict[str, Any] = MODEL.setting(
        {},
        "Chat template option, such as enable_thinking=false. Repeatable.",
        flag="--chat-template-option",
    )

    recipe: Recipe = ES.setting(
        "paper",
        "Defaults of alpha and its schedule.",
        details="'paper': those of ES-at-Scale. 'fast': larger steps, with cosine decay.",
    )
    sigma: float = ES.number(0.001, "Standard deviation of the perturbations.", gt=0, le=10)
    alpha: float | None = ES.number(None, "Step size.  [default: sigma/2, or 2 sigma with --recipe fast]", gt=0, le=10)
    population_size: int = ES.setting(30, "Members per iteration (N).", ge=2, le=1_000_000)
    n_iterations: int = ES.count(300, "Number of updates; 0 evaluates without training.", ge=0)
    antithetic: bool = ES.setting(False, "Draw members in mirrored pairs, +eps and -eps.")
    sigma_schedule: Schedule = ES.setting("constant", "Constant, linear or cosine, to --sigma-end.")
    sigma_end: float | None = ES.number(None, "Final sigma of --sigma-schedule.  [default: sigma/10]", gt=0, le=10)
    alpha_schedule: Schedule = ES.setting("constant", "Constant, linear or cosine, to --alpha-end.")
    alpha_end: float | None = ES.number(None, "Final alpha of --alpha-schedule.  [default: alpha/10]", gt=0, le=10)
    momentum: float = ES.number(
        0.0,
        "Share of the last movement that each update repeats.",
        details="It is replayed from seeds, so that one update costs about log(0.01)/log(momentum) updates.",
        ge=0,
        le=0.99,
    )
    perturbation: Literal["full", "low-rank"] = ES.setting(
        "full",
        "Noise on every weight, or of low rank on linear layers.",
        details="With 'low-rank', one batch serves many members.",
    )
    rank: int | None = ES.setting(
        None,
        "Rank of the noise with --perturbation low-rank.  [default: 1]",
        details="Memory is reserved for rank 1, 8, 16, 32 or 64.",
        ge=1,
        le=MAX_RANK,
    )
    reward_shaping: str = ES.setting("z-scores", "Shaping plugin that turns rewards into utilities.")
    normalize_utilities: bool = ES.setting(
        False,
        "Scale the utilities to a root mean square of 1.",
        details="An alpha then makes steps of the same size with every reward shaping.",
    )

    batch_size: int = GENERATION.count(512, "Prompts per iteration, at most the size of the data set.", ge=1)
    mini_batch_size: int = GENERATION.count(
        512,
        "Prompts that an engine answers at a time.",
        details="In 16 bits, the size can change how answers are rounded.",
        ge=1,
    )
    members_per_batch: int | None = GENERATION.setting(
        None,
        "Members that an engine decodes together with --perturbation low-rank.  [default: its share, at most 64]",
        ge=1,
        le=1024,
    )
    max_tokens: int = GENERATION.count(512, "Maximum length of an answer, in tokens.", ge=1)
    max_turns: int | None = GENERATION.setting(
        None,
        "Answers in a conversation, for a task with several turns.  [default: the task's, or 8]",
        details="At most; each may have --max-tokens.",
        ge=1,
        le=1000,
    )
    train_temperature: float = GENERATION.number(0.0, "Sampling temperature in training; 0 is greedy.", ge=0, le=100)
    train_top_p: float = GENERATION.number(1.0, "Nucleus sampling (top-p) in training.", gt=0, le=1)
    stop: list[str] = GENERATION.setting([], "Text that ends an answer and is kept in it. Repeatable.")
    rollout: Literal["auto", "vllm", "device"] = GENERATION.setting(
        "auto",
        "Who decodes: vLLM, or a loop on the device.",
        details="'auto' is the loop on a GPU, if it is proven at start to answer as vLLM does. Engines' logs say which "
        "one answers, and why.",
    )
    seed: int = GENERATION.setting(42, "Seed of all randomness in the run.", ge=0, le=MAX_SEED)

    eval_splits: list[str] = EVALUATION.setting(
        [], "Splits to evaluate, separated by commas.  [default: all]", eval_flag="--splits"
    )
    eval_limit: int | None = EVALUATION.count(
        None, "Evaluate only this many rows of each split, from its start.  [default: all]", eval_flag="--limit", ge=1
    )
    eval_temperature: float = EVALUATION.number(
        0.0, "Sampling temperature in evaluations; 0 is greedy.", eval_flag="--temperature", ge=0, le=100
    )
    eval_top_p: float = EVALUATION.number(
        1.0, "Nucleus sampling (top-p) in evaluations.", eval_flag="--top-p", gt=0, le=1
    )
    eval_n_samples: int = EVALUATION.setting(
        1, "Answers to sample for each evaluation prompt.", eval_flag="--n-samples", ge=1, le=10_000
    )
    pass_k: list[int] = EVALUATION.setting(
        [1], "Values of k for pass@k (unbiased), separated by commas: 1,4,8.", eval_flag="--pass-k"
    )
    max_reward: float = EVALUATION.number(1.0, "Reward from which an answer passes, if the task does not decide that.")
    early_stopping_patience: int = EVALUATION.count(
        0, "Stop training after so many evaluations in a row without improvement; 0 never.", ge=0
    )
    early_stopping_metric: str = EVALUATION.setting(
        MAIN_METRIC,
        "Metric of the evaluations that has to improve.",
        details="Higher is better. `metrics.jsonl` has the names, such as `eval/<split>/pass@1/mean`.",
    )
    early_stopping_min_delta: float = EVALUATION.number(
        0.0, "Smallest increase of the metric that is an improvement.", ge=0
    )

    n_vllm_engines: int | None = ENGINES.count(None, "Number of vLLM engines.  [default: all that fit]", ge=1)
    n_gpu_per_vllm_engine: int = ENGINES.count(
        1,
        "GPUs that one engine spans with tensor parallelism.",
        details="On a CPU, the number of processes.",
        ge=1,
    )
    n_vllm_engines_per_gpu: int = ENGINES.setting(
        1,
        "Engines that share one GPU, for small models.",
        details="With --rollout vllm, one engine leaves the GPU idle.",
        ge=1,
        le=16,
    )
    use_gpus: str | None = ENGINES.setting(
        None, "GPUs to use: indices such as 0,1, or 'none' for the CPU.  [default: all]"
    )
    master_device: Literal["auto", "gpu", "host"] = ENGINES.setting(
        "auto",
        "Where a GPU engine keeps its master weights.",
        details="On the 'gpu', or in 'host' memory, from which they are streamed; 'auto' is the GPU if they fit beside "
        "vLLM.",
    )
    gpu_memory_utilization: float | None = ENGINES.number(
        None,
        "Share of memory for the engines.  [default: 0.9 of a GPU, 0.5 on a CPU]",
        details="On a CPU, of the free memory. The default on a GPU is 0.7 if engines share it, and less if that makes "
        "room for master weights.",
        gt=0,
        le=1,
    )
    ray_address: str | None = ENGINES.setting(
        None, "Address of a Ray cluster, or 'auto'.  [default: RAY_ADDRESS, or a local one]"
    )
    engine_resource: str | None = ENGINES.setting(
        None,
        "Ray resource of the nodes that run engines, such as 'accelerator_type:H100'.",
    )
    reward_workers: int = ENGINES.setting(
        0,
        "Grading processes on other Ray nodes, beside this machine's.",
        details="For rewards that need more cores than this machine has. Those nodes need the task's package.",
        ge=0,
        le=4096,
    )
    ship_model: bool = ENGINES.setting(
        False,
        "Copy the model to the cluster's nodes that lack it.",
        details="It is kept there, under `~/.cache/esplug/models`, and checked by its hash.",
    )
    engine_timeout: float = ENGINES.number(
        600.0,
        "Seconds without progress until an engine is replaced.",
        details="Loading a model does not count.",
        ge=1,
        le=86400,
    )
    min_engines: int = ENGINES.count(
        1,
        "Engines that must be there to go on when a cluster loses nodes.",
        details="The run waits for more, and ends, resumable, if none come for as long as an engine may take to start.",
        ge=1,
    )
    max_restarts: int = ENGINES.count(10, "Engines to replace before the run fails.", ge=0)

    eval_freq: int = OUTPUT.count(5, "Evaluate every so many iterations; 0 only before and after training.", ge=0)
    logging: list[str] = OUTPUT.setting(
        ["console", "jsonl"], "Logger plugins, separated by commas; jsonl is always added."
    )
    output_directory: str = OUTPUT.setting("./experiments/", "Folder for run directories.")
    experiment_name: str | None = OUTPUT.setting(None, "Name of the run directory.  [default: made from the settings]")
    notes: str | None = OUTPUT.setting(None, "Text about the run, for reports, `esplug runs` and loggers.")
    tags: list[str] = OUTPUT.setting([], "Tag of the run, for `esplug runs --tag`. Repeatable.", flag="--tag")
    save_best_models: bool = OUTPUT.setting(False, "Save the model at every new best evaluation mean.")
    checkpoint_every: int = OUTPUT.count(
        0,
        "Save the weights every so many iterations; 0 never.",
        details="A run that has saved them resumes without replaying its whole seed log.",
        ge=0,
    )
    keep_checkpoints: int = OUTPUT.count(
        2, "Number of checkpoints to keep with --checkpoint-every.", flag="--keep", ge=1
    )
    profile: int | None = OUTPUT.count(
        None, "Write a trace of this iteration, for ui.perfetto.dev.", details="Iterations count from 0.", ge=0
    )
    wandb_project: str = OUTPUT.setting("es-finetuning", "Project for the loggers wandb and trackio.")

    _lists = field_validator("logging", "eval_splits", "pass_k", mode="before")(validation.split_list)
    _gpus = field_validator("use_gpus", mode="before")(validation.gpu_list)
    _options = field_validator("task_options", mode="before")(read_options)
    _template_options = field_validator("chat_template_options", mode="before")(read_json_options)
    _jsonl = field_validator("logging")(validation.with_jsonl)
    _items = field_validator("logging", "eval_splits")(validation.each_one_line)
    _tags = field_validator("tags")(validation.short_names)
    _k = field_validator("pass_k")(validation.ascending)
    _inputs = field_validator("task", "model_name", "checkpoint", "train_dataset", "eval_dataset")(validation.one_line)
    _paths = field_validator("model_name", "checkpoint")(validation.absolute_path)
    _sources = field_validator("train_dataset", "eval_dataset")(validation.absolute_sources)
    _names = field_validator("reward_shaping", "experiment_name", "wandb_project", "engine_resource")(
        validation.one_line
    )
    _places = field_validator("ray_address", "output_directory")(validation.one_line)
    _address = field_validator("ray_address")(validation.ray_address)
    _folder = field_validator("experiment_name")(validation.folder_name)
    _stop = field_validator("stop")(validation.no_empty_text)
    _text = field_validator("stop", "task_options", "chat_template_options", "system_prompt", "notes")(validation.utf8)
    _prompt = field_validator("system_prompt")(validation.not_blank)
    _metric = field_validator("early_stopping_metric")(validation.evaluation_metric)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill in defaults that depend on other settings, and check the combination."""
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma * STEPS[self.recipe])
        if self.perturbation == "low-rank" and self.rank is None:
            object.__setattr__(self, "rank", 1)
        check_combination(self)
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

    def to_toml(self) -> str:
        """Write the settings as a TOML file that ``--config`` reads back."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))

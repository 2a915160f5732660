"""One frozen, validated run configuration: from flags, a TOML file or Python keyword arguments.

Every setting is declared once, here; the command line and its help are made from these fields. Precedence,
lowest first: field default, the task's ``defaults()``, the TOML file, flags. A recipe counts as what names it does.
"""

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from os import fsencode
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin
from unicodedata import category

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esplug.config.recipes import STEPS, Recipe
from esplug.config.sources import merge, read_options
from esplug.errors import UserError
from esplug.es.schedules import Schedule, scheduled
from esplug.noise.low_rank import MAX_RANK
from esplug.utils.text import brief, cause, suggest

MAX_SEED = 2**64 - 1
_MOST = 1_000_000_000  # of anything that is counted: beyond all use, and within what every library takes
_MOST_AT_ONCE = 64  # members in a batch, unless the user wants more: a GPU is busy then
_LONGEST_TEXT = 4096  # which is also the longest path
_NOT_IN_LINES = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, and ends of lines
_KINDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
_OUT_OF_RANGE = {"finite_number", "greater_than", "greater_than_equal", "less_than_equal"}
Command = Literal["train", "eval"]


def _setting(
    default: Any, description: str, panel: str, *, flag: str | None = None, eval_flag: str | None = None, **limits: Any
) -> Any:
    """Declare one setting; ``flag`` and ``eval_flag`` (in `esplug eval`) where the name is not the field's."""
    extra: dict[str, Any] = {"panel": panel, "flag": flag, "eval_flag": eval_flag}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def _number(default: Any, description: str, panel: str, **limits: Any) -> Any:
    return _setting(default, description, panel, allow_inf_nan=False, **limits)


def _count(default: Any, description: str, panel: str, **limits: Any) -> Any:
    return _setting(default, description, panel, le=_MOST, **limits)


class RunConfig(BaseModel):
    """All settings of a run. Construct it with :func:`make_config` to get one-line errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    task: str = _setting("countdown", "Task plugin to train on (see `esplug plugins`).", "Task")
    task_options: dict[str, Any] = _setting(
        {}, "An option of the task, as key=value. Repeatable.", "Task", flag="--task-option"
    )
    train_dataset: str | None = _setting(
        None,
        "Training rows: DatasetDict folder, .json, .jsonl, .csv, .parquet, Hub id[:config][@revision].  "
        "[default: the task's own]",
        "Task",
    )
    eval_dataset: str | None = _setting(
        None,
        "Evaluation rows: DatasetDict folder, a folder of such, .json, .jsonl, .csv, .parquet, Hub "
        "id[:config][@revision]; several as a comma list.  "
        "[default: the task's own]",
        "Task",
    )
    reward_function_timeout: float = _number(10.0, "Seconds that grading one answer may take.", "Task", gt=0, le=86400)
    reward_memory: float = _number(
        4.0, "Memory that one grading process may take, in GiB.", "Task", ge=0.25, le=1_000_000
    )

    model_name: str = _setting(
        "Qwen/Qwen2.5-1.5B-Instruct", "Folder or Hugging Face id[@revision] of the base model.", "Model"
    )
    checkpoint: str | None = _setting(
        None,
        "Start from the weights in this Hugging Face folder, run directory, seed log, or ES-at-Scale .pth file.  "
        "[default: the base model's]",
        "Model",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _setting(
        "auto",
        "Type the engines compute in; auto is vLLM's choice: the checkpoint's, but 16 bits for float32.",
        "Model",
    )
    master_dtype: Literal["float32", "model"] = _setting(
        "float32",
        "Type of the master weights; 'model' halves their memory and rounds small updates away.",
        "Model",
    )
    max_model_len: int | None = _count(
        None, "Longest prompt plus answer, in tokens.  [default: the model's own]", "Model", ge=8
    )

    recipe: Recipe = _setting(
        "paper",
        "Defaults of this group's settings: those of the paper, or 'fast': larger steps, which shrink as a cosine.",
        "Evolution Strategies",
    )
    sigma: float = _number(0.001, "Standard deviation of the perturbations.", "Evolution Strategies", gt=0, le=10)
    alpha: float | None = _number(
        None, "Step size.  [default: sigma/2; in recipe fast 2 sigma]", "Evolution Strategies", gt=0, le=10
    )
    population_size: int = _setting(30, "Members per iteration (N).", "Evolution Strategies", ge=2, le=1_000_000)
    n_iterations: int = _count(300, "Updates to make; 0 only evaluates.", "Evolution Strategies", ge=0)
    antithetic: bool = _setting(False, "Draw members in mirrored pairs, +eps and -eps.", "Evolution Strategies")
    sigma_schedule: Schedule = _setting(
        "constant", "How sigma goes to --sigma-end over the run.", "Evolution Strategies"
    )
    sigma_end: float | None = _number(
        None, "What --sigma-schedule ends at.  [default: sigma/10]", "Evolution Strategies", gt=0, le=10
    )
    alpha_schedule: Schedule = _setting(
        "constant", "How alpha goes to --alpha-end over the run.", "Evolution Strategies"
    )
    alpha_end: float | None = _number(
        None, "What --alpha-schedule ends at.  [default: alpha/10]", "Evolution Strategies", gt=0, le=10
    )
    momentum: float = _number(
        0.0,
        "Share of its last movement that every update repeats, from seeds: the cost of an update grows as that of "
        "log(0.01)/log(momentum) of them.",
        "Evolution Strategies",
        ge=0,
        le=0.99,
    )
    perturbation: Literal["full", "low-rank"] = _setting(
        "full",
        "Noise on every weight, or of low rank on linear layers' weights alone, where one batch serves many members.",
        "Evolution Strategies",
    )
    rank: int | None = _setting(
        None,
        "Rank of the noise with --perturbation low-rank; members take room for 1, 8, 16, 32 or 64.  [default: 1]",
        "Evolution Strategies",
        ge=1,
        le=MAX_RANK,
    )
    reward_shaping: str = _setting(
        "z-scores", "Shaping plugin that turns rewards into utilities.", "Evolution Strategies"
    )

    batch_size: int = _count(512, "Prompts per iteration; capped at the data set's size.", "Generation", ge=1)
    mini_batch_size: int = _count(
        512,
        "Prompts an engine answers at a time; in 16 bits it can change how answers are rounded.",
        "Generation",
        ge=1,
    )
    members_per_batch: int | None = _setting(
        None,
        "Members whose answers an engine decodes together with --perturbation low-rank.  [default: its share of the "
        "population, at most 64]",
        "Generation",
        ge=1,
        le=1024,
    )
    max_tokens: int = _count(512, "Longest answer, in tokens.", "Generation", ge=1)
    train_temperature: float = _number(
        0.0, "Sampling temperature in training; 0 is greedy.", "Generation", ge=0, le=100
    )
    train_top_p: float = _number(1.0, "Nucleus sampling in training.", "Generation", gt=0, le=1)
    stop: list[str] = _setting([], "Text that ends an answer and is kept in it. Repeatable.", "Generation")
    seed: int = _setting(42, "Seed of everything random in the run.", "Generation", ge=0, le=MAX_SEED)

    eval_splits: list[str] = _setting(
        [], "Splits to evaluate, as a comma list.  [default: all]", "Evaluation", eval_flag="--splits"
    )
    eval_limit: int | None = _count(
        None, "Evaluate only the first rows of each split.  [default: all]", "Evaluation", eval_flag="--limit", ge=1
    )
    eval_temperature: float = _number(
        0.0, "Sampling temperature of evaluations; 0 is greedy.", "Evaluation", eval_flag="--temperature", ge=0, le=100
    )
    eval_top_p: float = _number(1.0, "Nucleus sampling of evaluations.", "Evaluation", eval_flag="--top-p", gt=0, le=1)
    eval_n_samples: int = _setting(
        1, "Answers to every evaluation prompt.", "Evaluation", eval_flag="--n-samples", ge=1, le=10_000
    )
    pass_k: list[int] = _setting(
        [1], "The k of pass@k (unbiased), as a comma list such as 1,4,8.", "Evaluation", eval_flag="--pass-k"
    )
    max_reward: float = _number(
        1.0, "Reward from which an answer passes, where the task does not say what is correct.", "Evaluation"
    )

    n_vllm_engines: int | None = _count(None, "vLLM engines.  [default: all there are]", "Engines", ge=1)
    n_gpu_per_vllm_engine: int = _count(
        1, "GPUs (on CPU: processes) that one engine spans with tensor parallelism.", "Engines", ge=1
    )
    n_vllm_engines_per_gpu: int = _setting(
        1,
        "Engines that share a GPU: a small model's answers cost vLLM more than the GPU, and so several do more.",
        "Engines",
        ge=1,
        le=16,
    )
    use_gpus: str | None = _setting(
        None, "GPUs to use: indices such as 0,1, or 'none' for the CPU.  [default: all there are]", "Engines"
    )
    master_device: Literal["auto", "gpu", "host"] = _setting(
        "auto",
        "Where a GPU's master weights are kept: on the 'gpu', or in the 'host', from where they are streamed; auto is "
        "the GPU if it has room for them beside vLLM.",
        "Engines",
    )
    gpu_memory_utilization: float | None = _number(
        None,
        "Share of memory for the engines.  [default: 0.9 of each GPU, 0.7 where engines share it, less where that "
        "makes room for master weights; on CPU 0.5 of what is free]",
        "Engines",
        gt=0,
        le=1,
    )
    ray_address: str | None = _setting(None, "Ray cluster to use, or 'auto'.  [default: a local one]", "Engines")
    engine_timeout: float = _number(
        600.0,
        "Seconds without progress after which an engine is replaced; loading a model does not count.",
        "Engines",
        ge=1,
        le=86400,
    )
    max_restarts: int = _count(10, "Engines to replace in a run before it is given up.", "Engines", ge=0)

    eval_freq: int = _count(5, "Evaluate every so many iterations; 0 only before and after.", "Output", ge=0)
    logging: list[str] = _setting(
        ["console", "jsonl"], "Logger plugins, as a comma list; jsonl always counts among them.", "Output"
    )
    output_directory: str = _setting("./experiments/", "Where run directories go.", "Output")
    experiment_name: str | None = _setting(None, "Run directory's name.  [default: made from the settings]", "Output")
    save_best_models: bool = _setting(False, "Save the model at every new best evaluation mean.", "Output")
    checkpoint_every: int = _count(
        0,
        "Save the weights every so many iterations, so that going on need not replay the seed log; 0 never.",
        "Output",
        ge=0,
    )
    keep_checkpoints: int = _count(2, "How many of these to keep.", "Output", flag="--keep", ge=1)
    profile: int | None = _count(
        None, "Write a trace of this iteration, counted from 0, for ui.perfetto.dev.", "Output", ge=0
    )
    wandb_project: str = _setting("es-finetuning", "Project for the loggers wandb and trackio.", "Output")

    @field_validator("logging", "eval_splits", "pass_k", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if value is None or value is False:
            return []
        items = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        return [part for item in items for part in (p.strip() for p in str(item).split(",")) if part]

    @field_validator("logging")
    @classmethod
    def _with_jsonl(cls, value: list[str]) -> list[str]:
        """Have the file that a run is judged by, and that other files are made from."""
        return value if "jsonl" in value else [*value, "jsonl"]

    @field_validator("pass_k")
    @classmethod
    def _ascending(cls, value: list[int]) -> list[int]:
        if any(k < 1 for k in value):
            raise ValueError("every k must be at least 1")
        return sorted({1, *value})

    @field_validator("use_gpus", mode="before")
    @classmethod
    def _gpu_list(cls, value: Any) -> Any:
        if value is None or value == "all":
            return None
        text = (
            value if isinstance(value, str) else ",".join(map(str, value if isinstance(value, Iterable) else [value]))
        )
        ids = [part.strip() for part in text.split(",")]
        if text != "none" and (not all(re.fullmatch("[0-9]{1,4}", part) for part in ids) or len(set(ids)) < len(ids)):
            raise ValueError("give distinct GPU indices such as 0,1, or 'none', or 'all'")
        return ",".join(ids)

    @field_validator("task_options", mode="before")
    @classmethod
    def _key_value(cls, value: Any) -> Any:
        return read_options(value)

    @field_validator(
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
    )
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip():
            raise ValueError("must not be empty")
        if len(value) > _LONGEST_TEXT or any(category(character) in _NOT_IN_LINES for character in value):
            raise ValueError(f"must be one line of at most {_LONGEST_TEXT} characters, without control characters")
        return value

    @field_validator("ray_address")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value and not re.fullmatch(r"auto|(ray://)?[\w.:\[\]-]+:[0-9]{1,5}", value, re.ASCII):
            raise ValueError("must be 'auto', or host:port")
        return value

    @field_validator("logging", "eval_splits")
    @classmethod
    def _lines(cls, value: list[str]) -> list[str]:
        return [item for item in value if cls._one_line(item)]

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("a stop text must not be empty")
        return value

    @field_validator("stop", "task_options")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        """Refuse what no file could hold: bytes on the command line that are not UTF-8."""
        for item in value.values() if isinstance(value, Mapping) else value:
            if isinstance(item, str) and any(category(character) == "Cs" for character in item):
                raise ValueError("must be UTF-8 text")
        return value

    @field_validator("experiment_name")
    @classmethod
    def _one_folder(cls, value: str | None) -> str | None:
        if value is not None and (
            value != Path(value).name or value == ".." or value.startswith("-") or len(fsencode(value)) > 200
        ):
            raise ValueError("must be one folder name of at most 200 bytes, without slashes, and no dash in front")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma * STEPS[self.recipe])
        for name in ("rank", "members_per_batch"):
            value = getattr(self, name)
            if value is not None and self.perturbation == "full":
                raise ValueError(f"<{name}> {value} is for <perturbation> low-rank; give that too")
        if self.perturbation == "low-rank" and self.rank is None:
            object.__setattr__(self, "rank", 1)
        for name in ("sigma", "alpha"):
            end = getattr(self, f"{name}_end")
            if end is not None and getattr(self, f"{name}_schedule") == "constant":
                raise ValueError(f"<{name}_end> {end:g} is for <{name}_schedule> linear or cosine; give that too")
        if self.n_vllm_engines_per_gpu > 1 and self.n_gpu_per_vllm_engine > 1:
            raise ValueError(
                "<n_vllm_engines_per_gpu> and <n_gpu_per_vllm_engine> exclude each other; give one of them"
            )
        if self.antithetic and self.population_size % 2:
            raise ValueError("--population-size must be even with --antithetic (members come in pairs)")
        if self.profile is not None and self.profile >= self.n_iterations > 0:
            raise ValueError(f"<profile> {self.profile}: the last iteration is {self.n_iterations - 1}")
        if self.max_model_len is not None and self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"--max-tokens {self.max_tokens} leaves no room for a prompt: --max-model-len is {self.max_model_len}"
            )
        if self.pass_k[-1] > self.eval_n_samples:
            raise ValueError(
                f"<pass_k> {self.pass_k[-1]} needs as many answers to a prompt: "
                f"<eval_n_samples> is {self.eval_n_samples}"
            )
        if self.eval_n_samples > 1 and self.eval_temperature == 0:
            raise ValueError(
                f"<eval_n_samples> {self.eval_n_samples} greedy answers would all be the same; "
                "give <eval_temperature>, such as 0.8"
            )
        return self

    @property
    def step_size(self) -> float:
        """Alpha, its default filled in."""
        assert self.alpha is not None
        return self.alpha

    @property
    def low_rank(self) -> int | None:
        """Rank of the perturbations; ``None`` where they have full rank, or there are none."""
        return self.rank if self.n_iterations else None

    def members_at_once(self, n_engines: int) -> int:
        """How many members one of so many engines answers with in one batch; batches of a population are alike."""
        if self.low_rank is None:
            return 1
        if self.members_per_batch:
            return min(self.members_per_batch, self.population_size)
        share = math.ceil(self.population_size / n_engines)
        return math.ceil(share / math.ceil(share / _MOST_AT_ONCE))

    def sigma_at(self, iteration: int) -> float:
        """Standard deviation of an iteration's perturbations."""
        return self._scheduled(self.sigma_schedule, self.sigma, self.sigma_end, iteration)

    def alpha_at(self, iteration: int) -> float:
        """Step size of an iteration."""
        return self._scheduled(self.alpha_schedule, self.step_size, self.alpha_end, iteration)

    def _scheduled(self, schedule: Schedule, start: float, end: float | None, iteration: int) -> float:
        done = min(1.0, iteration / max(self.n_iterations - 1, 1))
        return scheduled(schedule, start, start / 10 if end is None else end, done)

    def evaluates_at(self, iteration: int) -> bool:
        """Whether a run evaluates before this iteration; at the number of iterations, in the end."""
        return iteration in (0, self.n_iterations) or bool(self.eval_freq and iteration % self.eval_freq == 0)

    def how_to_resume(self, run: Path) -> str:
        """Say how to go on with a run of these settings in a directory."""
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
        """Folder of the fine-tuned model."""
        return f"checkpoint-es_fine_tuned_iteration_{self.n_iterations}"

    def to_toml(self) -> str:
        """Write the settings as a TOML file that ``--config`` reads back."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))


def flag_of(field: str, command: Command = "train") -> str:
    """Name of a field's command-line flag: ``n_iterations`` -> ``--n-iterations``."""
    own = (command == "eval" and _declared(field, "eval_flag")) or _declared(field, "flag")
    return own or "--" + field.replace("_", "-")


def _wanted(field: str, given: object) -> str:
    """Say what a setting may be: ``must be an integer, at least 1 and at most 10``."""
    info = RunConfig.model_fields[field]
    kinds = get_args(info.annotation) or (info.annotation,)
    if get_origin(info.annotation) is Literal:
        return f"must be one of {', '.join(kinds)}; {suggest(str(given), kinds)}".removesuffix("; ")
    words = {"gt": "greater than", "ge": "at least", "le": "at most"}
    limits = [
        f"{word} {getattr(part, key)}" for part in info.metadata for key, word in words.items() if hasattr(part, key)
    ]
    return "must be " + ", ".join([next(_KINDS[kind] for kind in kinds if kind in _KINDS), *limits])


def panel_of(field: str) -> str:
    """Name the group of settings that a field belongs to."""
    return _declared(field, "panel")


def _declared(field: str, what: str) -> str:
    extra = RunConfig.model_fields[field].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra[what] or "")


def make_config(
    *layers: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, command: Command = "train"
) -> RunConfig:
    """Merge settings, later layers win, as ``esplug.config.sources.merge`` says, and validate them.

    Args:
        layers: settings by field name.
        defaults: the task's, which count less.
        command: whose flags the errors name.

    Raises:
        UserError: one line naming the first setting at fault, its value and the range.
    """
    merged = merge({str(number): layer for number, layer in enumerate((defaults or {}, *layers))}).settings
    for key in merged:
        if key not in RunConfig.model_fields:
            unknown = f"unknown setting {brief(repr(key))}"
            raise UserError(f"{unknown}; {suggest(key, RunConfig.model_fields)}".rstrip("; "))
    complete()
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UserError(re.sub(r"<(\w+)>", lambda field: flag_of(field[1], command), message)) from None
        field = str(first["loc"][0])
        message = message if first["type"] == "value_error" else _wanted(field, first["input"])
        given = str(first["input"]) if first["type"] in _OUT_OF_RANGE else repr(first["input"])
        raise UserError(f"{flag_of(field, command)} {brief(given)}: {message}") from None


@cache
def complete() -> None:
    """Build the model, for which pydantic reads the metadata of every installed package.

    Raises:
        UserError: some package's are damaged.
    """
    try:
        RunConfig.model_rebuild()
    except Exception as error:
        raise UserError(
            f"the metadata of an installed package are damaged [{cause(error)}]; `esplug plugins` names it: "
            "reinstall it, or remove it"
        ) from error


def read_toml(path: str) -> dict[str, Any]:
    """Read a configuration file; dashes and underscores in keys are the same, and ``$schema`` is for editors.

    Raises:
        UserError: the file is missing or is not TOML.
    """
    try:
        if not Path(path).is_file():  # reading a pipe or device might never end
            raise UserError(f"--config {brief(path)}: {'not a file' if Path(path).exists() else 'No such file'}")
        with open(path, "rb") as file:
            read = tomllib.load(file)
        return {key.replace("-", "_"): value for key, value in read.items() if key != "$schema"}
    except OSError as error:
        raise UserError(f"--config {brief(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {brief(path)}: not a TOML file: {brief(str(error))}") from error

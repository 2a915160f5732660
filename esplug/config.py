"""One frozen, validated run configuration: from flags, a TOML file or Python keyword arguments.

Every setting is declared once, here; the command line and its help are made from these fields. Precedence,
lowest first: field default, the task's ``defaults()``, the TOML file, flags.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from esplug.errors import UserError
from esplug.plugins import suggest

MAX_SEED = 2**64 - 1
Command = Literal["train", "eval"]


def _setting(
    default: Any, description: str, panel: str, *, flag: str | None = None, eval_flag: str | None = None, **limits: Any
) -> Any:
    """Declare one setting; ``flag`` and ``eval_flag`` (in `esplug eval`) where the name is not the field's."""
    extra: dict[str, Any] = {"panel": panel, "flag": flag, "eval_flag": eval_flag}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def _number(default: Any, description: str, panel: str, **limits: Any) -> Any:
    return _setting(default, description, panel, allow_inf_nan=False, **limits)


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
    max_model_len: int | None = _setting(
        None, "Longest prompt plus answer, in tokens.  [default: the model's own]", "Model", ge=8
    )

    sigma: float = _number(0.001, "Standard deviation of the perturbations.", "Evolution Strategies", gt=0, le=10)
    alpha: float | None = _number(None, "Step size.  [default: sigma/2]", "Evolution Strategies", gt=0, le=10)
    population_size: int = _setting(30, "Members per iteration (N).", "Evolution Strategies", ge=2, le=1_000_000)
    n_iterations: int = _setting(300, "Updates to make; 0 only evaluates.", "Evolution Strategies", ge=0)
    antithetic: bool = _setting(False, "Draw members in mirrored pairs, +eps and -eps.", "Evolution Strategies")
    reward_shaping: str = _setting(
        "z-scores", "Shaping plugin that turns rewards into utilities.", "Evolution Strategies"
    )

    batch_size: int = _setting(512, "Prompts per iteration; capped at the data set's size.", "Generation", ge=1)
    mini_batch_size: int = _setting(
        512,
        "Prompts an engine answers at a time; in 16 bits it can change how answers are rounded.",
        "Generation",
        ge=1,
    )
    max_tokens: int = _setting(512, "Longest answer, in tokens.", "Generation", ge=1)
    train_temperature: float = _number(
        0.0, "Sampling temperature in training; 0 is greedy.", "Generation", ge=0, le=100
    )
    train_top_p: float = _number(1.0, "Nucleus sampling in training.", "Generation", gt=0, le=1)
    stop: list[str] = _setting([], "Text that ends an answer and is kept in it. Repeatable.", "Generation")
    seed: int = _setting(42, "Seed of everything random in the run.", "Generation", ge=0, le=MAX_SEED)

    eval_splits: list[str] = _setting(
        [], "Splits to evaluate, as a comma list.  [default: all]", "Evaluation", eval_flag="--splits"
    )
    eval_limit: int | None = _setting(
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

    n_vllm_engines: int | None = _setting(None, "vLLM engines.  [default: all there are]", "Engines", ge=1)
    n_gpu_per_vllm_engine: int = _setting(
        1, "GPUs (on CPU: processes) that one engine spans with tensor parallelism.", "Engines", ge=1
    )
    use_gpus: str | None = _setting(
        None, "GPUs to use: indices such as 0,1, or 'none' for the CPU.  [default: all there are]", "Engines"
    )
    gpu_memory_utilization: float | None = _number(
        None,
        "Share of memory for the engines.  [default: 0.9 of each GPU; on CPU 0.5 of what is free]",
        "Engines",
        gt=0,
        le=1,
    )
    ray_address: str | None = _setting(None, "Ray cluster to use, or 'auto'.  [default: a local one]", "Engines")
    engine_timeout: float = _number(
        600.0, "Seconds without a sign of life after which an engine is replaced.", "Engines", ge=1, le=86400
    )
    max_restarts: int = _setting(10, "Engines to replace in a run before it is given up.", "Engines", ge=0)

    eval_freq: int = _setting(5, "Evaluate every so many iterations; 0 only before and after.", "Output", ge=0)
    logging: list[str] = _setting(["console", "jsonl"], "Logger plugins, as a comma list.", "Output")
    output_directory: str = _setting("./experiments/", "Where run directories go.", "Output")
    experiment_name: str | None = _setting(None, "Run directory's name.  [default: made from the settings]", "Output")
    save_best_models: bool = _setting(False, "Save the model at every new best evaluation mean.", "Output")
    checkpoint_every: int = _setting(
        0,
        "Save the weights every so many iterations, so that going on need not replay the seed log; 0 never.",
        "Output",
        ge=0,
    )
    keep_checkpoints: int = _setting(2, "How many of these to keep.", "Output", flag="--keep", ge=1)
    wandb_project: str = _setting("es-finetuning", "Project for the wandb logger.", "Output")

    @field_validator("logging", "eval_splits", "pass_k", mode="before")
    @classmethod
    def _split_list(cls, value: Any) -> Any:
        if value is None or value is False:
            return []
        items = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        return [part for item in items for part in (p.strip() for p in str(item).split(",")) if part]

    @field_validator("logging")
    @classmethod
    def _some_logger(cls, value: list[str]) -> list[str]:
        return value or ["none"]

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
        if text != "none" and (not all(part.isdigit() for part in ids) or len(set(ids)) < len(ids)):
            raise ValueError("give distinct GPU indices such as 0,1, or 'none', or 'all'")
        return ",".join(ids)

    @field_validator("task_options", mode="before")
    @classmethod
    def _key_value(cls, value: Any) -> Any:
        return _options(value)

    @field_validator(
        "task",
        "model_name",
        "checkpoint",
        "train_dataset",
        "eval_dataset",
        "output_directory",
        "reward_shaping",
    )
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("a stop text must not be empty")
        return value

    @field_validator("experiment_name")
    @classmethod
    def _one_folder(cls, value: str | None) -> str | None:
        if value is not None and (value != Path(value).name or value in {"", ".", ".."} or len(value) > 200):
            raise ValueError("must be one folder name, without slashes, of at most 200 characters")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma / 2)
        if self.antithetic and self.population_size % 2:
            raise ValueError("--population-size must be even with --antithetic (members come in pairs)")
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
    def run_name(self) -> str:
        """The experiment's name, or one made from the settings."""
        model = Path(self.model_name).name
        if self.experiment_name:
            return self.experiment_name
        if not self.n_iterations:
            return f"eval-{self.task}-{Path(self.checkpoint).name if self.checkpoint else model}"[:180]
        return (
            f"{self.task}-{model}-sigma{self.sigma:g}-alpha{self.step_size:g}-n{self.population_size}-seed{self.seed}"
        )[:180]

    def to_toml(self) -> str:
        """Write the settings as a TOML file that ``--config`` reads back."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))


def _options(value: Any) -> dict[str, Any]:
    """Read task options given as a mapping or as texts ``key=value``."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, list | tuple):
        raise ValueError("write task options as key=value, or as a table in the file")
    pairs = [str(item).partition("=") for item in value]
    if bad := next((key for key, sep, _ in pairs if not sep or not key.strip()), None):
        raise ValueError(f"write it as key=value, not {bad!r}")
    return {key.strip(): text for key, _, text in pairs}


def _joined(earlier: Any, later: Any) -> Any:
    """Let later task options win one by one; what cannot be read is left for validation to refuse."""
    try:
        return _options(earlier) | _options(later)
    except ValueError:
        return later


def flag_of(field: str, command: Command = "train") -> str:
    """Name of a field's command-line flag: ``n_iterations`` -> ``--n-iterations``."""
    own = (command == "eval" and _declared(field, "eval_flag")) or _declared(field, "flag")
    return own or "--" + field.replace("_", "-")


def panel_of(field: str) -> str:
    """Name the group of settings that a field belongs to."""
    return _declared(field, "panel")


def _declared(field: str, what: str) -> str:
    extra = RunConfig.model_fields[field].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra[what] or "")


def make_config(*layers: Mapping[str, Any], command: Command = "train") -> RunConfig:
    """Merge settings, later layers win, and validate them.

    Args:
        layers: settings by field name.
        command: whose flags the errors name.

    Raises:
        UserError: one line naming the first setting at fault, its value and the range.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key not in RunConfig.model_fields:
                raise UserError(f"unknown setting {key!r}; {suggest(key, RunConfig.model_fields)}".rstrip("; "))
            if key == "task_options" and key in merged:
                value = _joined(merged[key], value)
            merged[key] = value
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise UserError(re.sub(r"<(\w+)>", lambda field: flag_of(field[1], command), message)) from None
        raise UserError(f"{flag_of(str(first['loc'][0]), command)} {first['input']!r}: {message}") from None


def read_toml(path: str) -> dict[str, Any]:
    """Read a configuration file; dashes and underscores in keys are the same.

    Raises:
        UserError: the file is missing or is not TOML.
    """
    try:
        with open(path, "rb") as file:
            return {key.replace("-", "_"): value for key, value in tomllib.load(file).items()}
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not a TOML file: {error}") from error

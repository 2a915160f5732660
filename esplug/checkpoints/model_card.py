"""Model card of an exported model: the settings that affect the result, evaluations and how to reproduce it.

It holds no private data, and only the last part of a path.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from esplug.checkpoints.seed_log_format import FILE_NAME
from esplug.checkpoints.seed_log_records import Header
from esplug.config import RunConfig, panel_of, read_toml
from esplug.errors import UserError

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CACHED = re.compile(r"/models--([\w.-]+)--([\w.-]+)/snapshots/")
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/@\s]*@")  # and password, in an address
_PANELS = ("Task", "Model", "Evolution Strategies", "Generation", "Evaluation")
_MAY_BE_PATHS = ("model_name", "checkpoint", "train_dataset", "eval_dataset", "task_options")
_LICENCE = re.compile(r"^license(?:_name|_link)?:[ \t]*\S.*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\n---\s", re.DOTALL)
_EVALUATION = re.compile(r"model_eval_task.*_iteration(\d+)\.json")
_MAX_METRICS_CHARACTERS = 2**20
_SHOWN = (
    "population_size",
    "sigma",
    "alpha",
    "momentum",
    "antithetic",
    "reward_shaping",
    "normalize_utilities",
    "batch_size",
)
_TITLES = {
    "train_dataset": "training data",
    "eval_dataset": "evaluation data",
    "antithetic": "mirrored pairs",
    "batch_size": "prompts per iteration",
}


def model_card(
    header: Header, iteration: int, checksum: int, run: Path | None, base_card: Path, dtype: str | None
) -> str:
    """Return the model card as Markdown with YAML front matter.

    The settings and evaluations come from the directory ``run``, if it is known, and the licence from ``base_card``, if
    it exists. ``dtype`` is the type of the weights, if it is not the base model's.
    """
    import tomli_w

    settings = _settings(header, run)
    base_id = _hub_id(header)
    base = base_id or public_name(header.base.name)
    perturbed = f"rank {header.low_rank} of its linear layers" if header.low_rank else "all weights"
    name = f"{Path(base).name} fine-tuned on {settings.get('task', 'a task')}"
    parts = [
        _front_matter(base_id, base_card),
        f"# {name}",
        f"`{base}` after {iteration} {'iteration' if iteration == 1 else 'iterations'} of fine-tuning with Evolution "
        f"Strategies, by esplug {version('esplug')}: no backpropagation, only "
        f"random perturbations of {perturbed} and the rewards of the sampled answers.",
        _table(("", ""), _facts(header, base, settings, iteration, checksum, dtype)),
        *_evaluation_section(run, iteration),
        "## How to reproduce",
        "The run's seed log and the base model reproduce these weights bit for bit. The export verifies the checksum "
        "of the master weights, shown above, before it writes the model:",
        f"```sh\nesplug export {FILE_NAME} --out model --iteration {iteration}"
        + (f" --dtype {dtype}" if dtype else "")
        + ("" if base_id else f" --base {base}")
        + "\n```",
    ]
    if settings:
        toml = tomli_w.dumps({name: value for name, value in settings.items() if value is not None})
        parts += [
            "To repeat the training, run `esplug train --config config.toml` with these settings:",
            f"```toml\n{toml}```",
        ]
    return "\n\n".join(parts) + "\n"


def _settings(header: Header, run: Path | None) -> dict[str, Any]:
    """Return the settings that affect the result, without private data."""
    given = dict(header.settings)
    if run and (run / "config.toml").is_file():
        with suppress(UserError):  # falls back to the settings in the log
            given |= read_toml(str(run / "config.toml"))
    return {
        name: _without_paths(value) if name in _MAY_BE_PATHS else value
        for name, value in given.items()
        if name in RunConfig.model_fields and panel_of(name) in _PANELS
    }


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return ",".join(map(public_name, _USER.sub("", value).split(",")))
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _without_paths(item) for key, item in value.items() if not _SECRET.search(str(key))}
    return value


def public_name(name: str) -> str:
    """Return the last part of a path outside the working directory; any other name unchanged."""
    private = name.strip().startswith(("/", "~", "..", "file:"))
    return Path(name.strip()).name if private else name


def _hub_id(header: Header) -> str | None:
    """Return the base model's id on the Hub; ``None`` for a folder, which has no revision."""
    if cached := _CACHED.search(header.base.name):
        return f"{cached[1]}/{cached[2]}"
    name = header.base.name.partition("@")[0]
    return name if header.base.revision and _HUB_ID.fullmatch(name) else None


def _front_matter(base_id: str | None, base_card: Path) -> str:
    lines = [f"base_model: {json.dumps(base_id)}", "base_model_relation: finetune"] if base_id else []
    lines += ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- evolution-strategies"]
    lines += ["- esplug", *_licence(base_card)]
    return "\n".join(["---", *lines, "---"])


def _licence(base_card: Path) -> list[str]:
    """Return the licence lines of the base model's card, which apply to the fine-tuned model, too."""
    try:
        matter = _FRONT_MATTER.match(base_card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in _LICENCE.findall(matter[1])] if matter else []


def _facts(
    header: Header, base: str, settings: Mapping[str, Any], iteration: int, checksum: int, dtype: str | None
) -> Iterator[tuple[str, str]]:
    yield "base model", f"`{base}`" + (f", revision `{header.base.revision}`" if header.base.revision else "")
    for field in ("task", "train_dataset", "eval_dataset"):
        if field in settings:
            yield _TITLES.get(field, field), f"`{settings[field]}`"
        elif field != "task" and settings:
            yield _TITLES[field], "the task's own"
    yield "iterations", str(iteration)
    for field in _SHOWN:
        if field in settings:
            value = settings[field]
            shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"
            schedule = settings.get(f"{field}_schedule", "constant")
            if schedule != "constant":
                shown += f", {schedule} to {settings.get(f'{field}_end', 'a tenth')}"
            yield _TITLES.get(field, field.replace("_", " ")), shown
    yield "run seed", str(header.run_seed)
    yield "master weights", "the model's types" if header.master_dtype == "model" else header.master_dtype
    if dtype:
        yield "written as", dtype
    yield "checksum", f"`{checksum:016x}`"


def _evaluation_section(run: Path | None, iteration: int) -> list[str]:
    """Return the section on the first evaluation and the last one up to ``iteration``, if there are any."""
    if run is None or not (evaluations := _evaluations(run, iteration)):
        return []
    shown = sorted({min(evaluations), max(evaluations)})
    counts = _prompt_counts(run)
    rows = [
        (
            split.replace("|", "\\|").replace("\n", " "),
            figure,
            str(counts.get((split, figure), "")),
            *(_interval(evaluations[each].get(split, {}), f"eval/{split}/{figure}") for each in shown),
        )
        for split, metrics in sorted(evaluations[shown[-1]].items())
        for figure in _figure_names(split, metrics)
    ]
    if not rows:
        return []
    iterations = (f"iteration {each}" if each else "base model" for each in shown)
    return [
        "## Evaluation",
        _table(("split", "figure", "prompts", *iterations), rows),
        "Means with 95% intervals over prompts: Wilson's for proportions, else the bootstrap's.",
    ]


def _evaluations(run: Path, iteration: int) -> dict[int, dict[str, dict[str, Any]]]:
    """Return the metrics of the first evaluation and the last one up to ``iteration``, by iteration and split."""
    files: dict[int, list[Path]] = {}
    for path in sorted((run / "eval-output").glob("*.json")):
        name = _EVALUATION.fullmatch(path.name)
        if name and int(name[1]) <= iteration:
            files.setdefault(int(name[1]), []).append(path)
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for number in {min(files), max(files)} if files else ():
        for record in filter(None, map(_read_metrics, files[number])):
            found.setdefault(number, {})[str(record["split"])] = record["metrics"]
    return found


def _read_metrics(path: Path) -> dict[str, Any] | None:
    """Read an evaluation's file up to its samples, which may be large."""
    with path.open(encoding="utf-8", errors="replace") as file:
        text, found, _ = file.read(_MAX_METRICS_CHARACTERS).partition('"samples":')
    try:
        record = json.loads(text.rstrip().removesuffix(",") + "}" if found else text)
    except ValueError:
        return None
    fits = isinstance(record, dict) and "split" in record and isinstance(record.get("metrics"), dict)
    return record if fits else None


def _prompt_counts(run: Path) -> dict[tuple[str, str], int]:
    """Return the number of prompts behind each split's figures, from ``results.json``."""
    try:
        splits = json.loads((run / "results.json").read_text(encoding="utf-8"))["splits"]
        return {
            (split, figure): int(each["n"])
            for split, record in splits.items()
            for figure, each in record["figures"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _figure_names(split: str, metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of the figures to show: pass@k, and the reward unless it equals pass@1."""
    root = f"eval/{split}/"
    named = [key.removeprefix(root).removesuffix("/mean") for key in metrics if key.endswith("/mean")]
    shown = [name for name in named if re.fullmatch(r"pass@\d+|reward", name)]
    if "pass@1" in shown and "reward" in shown:
        same = all(metrics.get(f"{root}pass@1/{x}") == metrics.get(f"{root}reward/{x}") for x in ("mean", "ci95_low"))
        shown = [name for name in shown if not (same and name == "reward")]
    return shown


def _interval(metrics: Mapping[str, Any], root: str) -> str:
    mean, low, high = (metrics.get(f"{root}/{part}") for part in ("mean", "ci95_low", "ci95_high"))
    if mean is None or low is None or high is None:
        return ""
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

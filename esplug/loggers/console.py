"""Logger ``console``: the settings, one line per iteration and per evaluated split, and two answers of each split."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esplug.config import RunConfig
from esplug.hookspecs import hookimpl
from esplug.loggers.services import as_text
from esplug.utils.console import say
from esplug.utils.text import brief, printable

synchronous = True
_SHOWN = 2  # prompts of each split; always the first ones
_LONGEST = 100  # characters of each text
_PHASES = {"generate": "engine_generate", "switch": "switch", "grade": "grade_wait", "update": "update"}


@hookimpl
def start(config: RunConfig) -> None:
    """Print the settings. Loggers start when everything that needs no engine has been checked."""
    say(config.to_toml())


@hookimpl
def log(step: int, metrics: Mapping[str, float]) -> None:
    """Print the most important metrics, as far as they are present."""
    for line in [*_train(step, metrics), *_evaluation(step, metrics)]:
        say(printable(line))


@hookimpl
def samples(step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the first answer to each of the first prompts, one line each, with control characters escaped."""
    shown: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in rows:
        if row["index"] < _SHOWN:
            shown.setdefault((row["split"], row["index"]), row)
    for row in shown.values():
        prompt, answer = (repr(brief(as_text(row[name]), _LONGEST)) for name in ("prompt", "output"))
        graded = f"reward {row['reward']:.4f} {brief(row['label'])}".rstrip()
        say(printable(f"evaluation {step}  {row['split']}  {graded}  {prompt} -> {answer}"))


def _train(step: int, metrics: Mapping[str, float]) -> Iterator[str]:
    names = [name for name in ("mean", "min", "max", "std") if f"train/reward/{name}" in metrics]
    rewards = [f"{name} {metrics[f'train/reward/{name}']:.4f}" for name in names]
    if rewards:
        parts = [f"iteration {step}", "reward " + " ".join(rewards)]
        if (speed := metrics.get("train/tokens_per_second")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if (seconds := metrics.get("time/iteration")) is not None:
            parts.append(f"{seconds:.1f} s")
        if phases := [
            f"{name} {metrics[f'time/{key}']:.1f}" for name, key in _PHASES.items() if f"time/{key}" in metrics
        ]:
            parts.append(f"({', '.join(phases)})")
        yield "  ".join(parts)


def _evaluation(step: int, metrics: Mapping[str, float]) -> Iterator[str]:
    """Yield one line per split: each ``eval/<split>/<name>/mean``, with its 95% confidence interval if there is one."""
    splits: dict[str, list[str]] = {}
    for key, mean in metrics.items():
        if (found := re.fullmatch(r"(eval/(.+)/([^/]+))/mean", key)) and "/metrics/" not in key:
            root, split, name = found.groups()
            low, high = metrics.get(f"{root}/ci95_low"), metrics.get(f"{root}/ci95_high")
            interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
            splits.setdefault(split, []).append(f"{name} {mean:.4f}{interval}")
    if len(splits) == 2:
        splits.pop("average", None)  # equals the only split
    for split, parts in splits.items():
        yield "  ".join([f"evaluation {step}", split, *parts])

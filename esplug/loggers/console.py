"""Logger ``console``: a line for each iteration, and a line for each evaluated split."""

import re
from collections.abc import Iterator, Mapping

from esplug.console import get_console
from esplug.hookspecs import hookimpl

synchronous = True


@hookimpl
def log(step: int, metrics: Mapping[str, float]) -> None:
    """Print the metrics that people watch; those not among ``metrics`` are left out."""
    for line in [*_train(step, metrics), *_evaluation(step, metrics)]:
        get_console().print(line, markup=False, soft_wrap=True)


def _train(step: int, metrics: Mapping[str, float]) -> Iterator[str]:
    rewards = [
        f"{name} {metrics[key]:.4f}"
        for name in ("mean", "min", "max", "std")
        if (key := f"train/reward/{name}") in metrics
    ]
    if rewards:
        parts = [f"iteration {step}", "reward " + " ".join(rewards)]
        if (speed := metrics.get("train/tokens_per_second")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if (seconds := metrics.get("time/iteration")) is not None:
            parts.append(f"{seconds:.1f} s")
        phases = [
            f"{name} {metrics[key]:.1f}"
            for name, key in (
                ("generate", "time/engine_generate"),
                ("switch", "time/switch"),
                ("grade", "time/grade_wait"),
                ("update", "time/update"),
            )
            if key in metrics
        ]
        if phases:
            parts.append(f"({', '.join(phases)})")
        yield "  ".join(parts)


def _evaluation(step: int, metrics: Mapping[str, float]) -> Iterator[str]:
    """Print each ``eval/<split>/<name>/mean``, with its 95% confidence interval where there is one."""
    splits: dict[str, list[str]] = {}
    for key, mean in metrics.items():
        if (found := re.fullmatch(r"(eval/(.+)/([^/]+))/mean", key)) and "/metrics/" not in key:
            root, split, name = found.groups()
            low, high = metrics.get(f"{root}/ci95_low"), metrics.get(f"{root}/ci95_high")
            interval = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
            splits.setdefault(split, []).append(f"{name} {mean:.4f}{interval}")
    if len(splits) == 2:
        splits.pop("average", None)  # of a single split
    for split, parts in splits.items():
        yield "  ".join([f"evaluation {step}", split, *parts])

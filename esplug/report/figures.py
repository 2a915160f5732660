"""Figures of a report: runs compared with each other, and the parts of a single run's iterations."""

from collections.abc import Sequence
from functools import partial

from esplug.loggers.metrics_file import Row
from esplug.report.plots import Panel, Series, SeriesOf, Values, bars, lines
from esplug.report.run_data import RunData
from esplug.report.text import visible

_LABELS = 6  # reward labels with a colour of their own; the others share one
_TASK_METRICS = 6  # metrics of the task that get a figure


def compared(runs: Sequence[RunData]) -> list[Panel]:
    """Draw the figures that can overlay several runs, with one colour per run."""
    reward = "Mean over members; the band spans the worst and the best member."
    length = "Mean over answers; evaluations with 95% intervals."
    speed = "All engines together, while they generate."
    mirrored = "Near -1, the reward is linear within sigma; near 0, noise hides the slope, or curvature varies as much."
    steps = "Scale of the perturbations and of the update."
    rewards = _training("train/reward/mean", ("train/reward/min", "train/reward/max"))
    correlation = _training("train/mirrored_correlation")
    utilization = "Share of the time in which a GPU ran a kernel, averaged over the run's GPUs."
    memory = "Resident memory of the driver and of all engines together."
    if any("system/gpu_memory" in row.values for run in runs for row in run.iterations):
        memory += " Of GPUs, the most in use, averaged over the run's GPUs."
    panels = [
        _evaluation(runs),
        lines(runs, "reward", "Training reward", reward, "reward", rewards),
        lines(runs, "length", "Answer length", length, "tokens per answer", partial(_lengths, len(runs) == 1)),
        lines(runs, "speed", "Speed", speed, "tokens/s", _training("train/tokens_per_second")),
        lines(runs, "gpu", "GPU utilization", utilization, "% of the time", _training("system/gpu_utilization")),
        lines(runs, "memory", "Memory", memory, "GiB", _memory),
        lines(runs, "correlation", "Correlation of mirrored members", mirrored, "correlation", correlation),
        lines(runs, "steps", "Sigma and alpha", steps, "sigma, alpha", _sigma_and_alpha),
        *_task_metrics(runs),
    ]
    return [panel for panel in panels if panel.lines]


def of_one(run: RunData) -> list[Panel]:
    """Draw all figures of a report on one run."""
    panels = compared([run])
    first = [panel for panel in panels if panel.name in ("evaluation", "reward", "length")]
    return [*first, *of_run(run), *(panel for panel in panels if panel not in first)]


def of_run(run: RunData) -> list[Panel]:
    """Draw the parts of a run's iterations as stacked bars."""
    panels = [_labels(run), _phases(run), _engines(run)]
    return [panel for panel in panels if panel.bars]


def _training(metric: str, bounds: tuple[str, str] | None = None) -> SeriesOf:
    return lambda run: [("", run.iterations, metric, bounds)]


def _sigma_and_alpha(run: RunData) -> list[Series]:
    return [(name, run.iterations, f"train/{name}", None) for name in ("alpha", "sigma")]


def _memory(run: RunData) -> list[Series]:
    names = {"driver": "driver", "engines": "engine", "GPU": "gpu"}
    return [(label, run.iterations, f"system/{name}_memory", None) for label, name in names.items()]


def _phases(run: RunData) -> Panel:
    evaluated = {row.step: row.values.get("time/evaluate") for row in run.evaluations}
    trained = {row.step: row for row in run.iterations}
    steps = sorted(trained.keys() | {step for step, seconds in evaluated.items() if seconds is not None})
    rows = [trained.get(step, Row(step, {})) for step in steps]
    phases = {
        "generation": [row.get("time/generate") for row in rows],
        "waiting for rewards": [row.get("time/grade_wait") for row in rows],
        "update": [row.get("time/update") for row in rows],
        "evaluation": [evaluated.get(step) for step in steps],
    }
    return bars(rows, phases, "phases", "Time per iteration", "Seconds in each phase.", "seconds", "s")


def _engines(run: RunData) -> Panel:
    names = {"generating": "engine_generate", "switching weights": "switch", "updating": "update"}
    use: dict[str, Values] = {
        label: [_share(row, f"time/{name}") for row in run.iterations] for label, name in names.items()
    }
    use["idle"] = [_rest(shares) for shares in zip(*use.values(), strict=True)]
    caption = "Share of an iteration's time, averaged over the engines."
    return bars(run.iterations, use, "engines", "Engine utilization", caption, "% of the time", "%")


def _evaluation(runs: Sequence[RunData]) -> Panel:
    metrics = {run.main_metric for run in runs}
    unit = metrics.pop() if len(metrics) == 1 else "score"

    def series(run: RunData) -> list[Series]:
        splits = run.splits if len(run.splits) > 1 and len(runs) == 1 else []
        roots = [(split, f"eval/{split}/{run.main_metric}") for split in ["average", *splits]]
        return [(split if splits else "", run.evaluations, f"{root}/mean", _bounds(root)) for split, root in roots]

    several_splits = any(len(run.splits) > 1 for run in runs)
    caption = "Held-out prompts, with 95% intervals" + ("; average of the splits." if several_splits else ".")
    return lines(runs, "evaluation", "Evaluation", caption, unit, series)


def _lengths(one_run: bool, run: RunData) -> list[Series]:
    """Return the curves of a run's answer lengths; of evaluations only where a run does not need many lines."""
    found: list[Series] = [("training", run.iterations, "train/tokens/mean", None)]
    for split in run.splits if one_run or len(run.splits) == 1 else []:
        label = f"evaluation {split}" if len(run.splits) > 1 else "evaluation"
        root = f"eval/{split}/tokens"
        found.append((label, run.evaluations, f"{root}/mean", _bounds(root)))
    return found


def _task_metrics(runs: Sequence[RunData]) -> list[Panel]:
    prefix, suffix = "train/metrics/", "/mean"
    names = {name for run in runs for row in run.iterations for name in row.values if name.startswith(prefix)}
    panels = []
    for number, metric in enumerate(sorted(names)[:_TASK_METRICS]):
        title = visible(metric.removeprefix(prefix).removesuffix(suffix), 40)
        caption, series = "Metric of the task, averaged over the members' answers.", _training(metric)
        panels.append(lines(runs, f"metric-{number}", title, caption, title, series))
    return panels


def _labels(run: RunData) -> Panel:
    """Draw the counts of the most frequent labels, ``correct`` first, and of all others together.

    The metrics are shares. If the number of answers is unknown in an iteration, the figure shows shares.
    """
    prefix = "train/labels/"
    totals: dict[str, float] = {}
    for row in run.iterations:
        for name, value in row.values.items():
            if name.startswith(prefix):
                totals[name] = totals.get(name, 0.0) + value
    ranked = sorted(totals, key=lambda name: (name != f"{prefix}correct", -totals[name]))
    counts = [_answers(row) for row in run.iterations]
    known = None not in counts
    wholes = [count if known and count else 100 for count in counts]
    groups = {name.removeprefix(prefix): [name] for name in ranked[:_LABELS]}
    if ranked[_LABELS:]:
        groups["others"] = ranked[_LABELS:]
    rows = list(zip(run.iterations, wholes, strict=True))
    parts = {
        label: [whole * sum(row.values.get(name, 0.0) for name in names) for row, whole in rows]
        for label, names in groups.items()
    }
    unit, short = ("answers", "") if known else ("% of answers", "%")
    caption = "Labels that the reward function gave to the members' answers."
    return bars(run.iterations, parts, "labels", "Reward labels", caption, unit, short)


def _answers(row: Row) -> int | None:
    """Return the number of answers in an iteration: all tokens divided by the mean tokens per answer."""
    speed, seconds = row.get("train/tokens_per_second"), row.get("time/generate")
    mean = row.get("train/tokens/mean")
    return round(speed * seconds / mean) if speed and seconds and mean else None


def _share(row: Row, name: str) -> float | None:
    part, whole = row.get(name), row.get("time/iteration")
    return None if part is None or not whole else 100 * part / whole


def _rest(parts: tuple[float | None, ...]) -> float | None:
    known = [part for part in parts if part is not None]
    return max(0.0, 100 - sum(known)) if known else None


def _bounds(root: str) -> tuple[str, str]:
    return f"{root}/ci95_low", f"{root}/ci95_high"

"""Which figures a report has: several runs laid over each other, and what a single run's iterations are made of."""

import html
from collections.abc import Sequence
from functools import partial

from esplug.loggers.metrics_file import Row
from esplug.report.plots import Panel, Series, bars, lines
from esplug.report.run_data import RunData
from esplug.report.text import visible

#: Reward labels with a colour of their own; further ones are drawn together.
_LABELS = 6
#: The task's own metrics that get a figure.
_TASK_METRICS = 6


def compared(runs: Sequence[RunData]) -> list[Panel]:
    """Draw what can be laid over each other: one colour a run."""
    panels = [
        _evaluation(runs),
        lines(
            runs,
            "reward",
            "Training reward",
            "Mean of the members; the band reaches from the worst to the best.",
            "reward",
            lambda run: [("", run.iterations, "train/reward/mean", ("train/reward/min", "train/reward/max"))],
        ),
        lines(
            runs,
            "length",
            "Answer length",
            "Mean over answers; of evaluations with 95% intervals.",
            "tokens an answer",
            lambda run: [
                ("training", run.iterations, "train/tokens/mean", None),
                *(
                    (f"evaluation {split}" if len(run.splits) > 1 else "evaluation", run.evaluations, *_tokens(split))
                    for split in (run.splits if len(runs) == 1 or len(run.splits) == 1 else [])
                ),
            ],
        ),
        lines(
            runs,
            "speed",
            "Speed",
            "Tokens of all engines together, while they answer.",
            "tokens/s",
            lambda run: [("", run.iterations, "train/tokens_per_second", None)],
        ),
        lines(
            runs,
            "correlation",
            "Correlation of mirrored members",
            "Near -1 sigma suits; near +1 it is too large (curvature dominates).",
            "correlation",
            lambda run: [("", run.iterations, "train/mirrored_correlation", None)],
        ),
        lines(
            runs,
            "steps",
            "Sigma and alpha",
            "Size of the perturbations and of the step.",
            "sigma, alpha",
            lambda run: [(name, run.iterations, f"train/{name}", None) for name in ("alpha", "sigma")],
        ),
        *_task_metrics(runs),
    ]
    return [panel for panel in panels if panel.figure.data]


def of_one(run: RunData) -> list[Panel]:
    """Draw all of a run that is alone in its report."""
    panels = compared([run])
    first = [panel for panel in panels if panel.name in ("evaluation", "reward", "length")]
    return [*first, *of_run(run), *(panel for panel in panels if panel not in first)]


def of_run(run: RunData) -> list[Panel]:
    """Draw what a run's iterations are made of, as stacked bars."""
    evaluated = {row.step: row.values.get("time/evaluate") for row in run.evaluations}
    trained = {row.step: row for row in run.iterations}
    empty = Row(0, {})
    steps = sorted(trained.keys() | {step for step, seconds in evaluated.items() if seconds is not None})
    rows = [trained.get(step, empty) for step in steps]
    phases = {
        "answers": [row.get("time/generate") for row in rows],
        "waiting for grades": [row.get("time/grade_wait") for row in rows],
        "update": [row.get("time/update") for row in rows],
        "evaluation": [evaluated.get(step) for step in steps],
    }
    use = {
        "answering": [_share(row, "time/engine_generate") for row in run.iterations],
        "changing weights": [_share(row, "time/switch") for row in run.iterations],
        "updating": [_share(row, "time/update") for row in run.iterations],
    }
    use["waiting"] = [_rest(each) for each in zip(*use.values(), strict=True)]
    panels = [
        _labels(run),
        bars(steps, phases, "phases", "Time of an iteration", "Where each iteration's seconds go.", "seconds", "s"),
        bars(
            [row.step for row in run.iterations],
            use,
            "engines",
            "Use of the engines",
            "Share of an iteration's time, averaged over the engines.",
            "% of the time",
            "%",
        ),
    ]
    return [panel for panel in panels if panel.figure.data]


def _evaluation(runs: Sequence[RunData]) -> Panel:
    figures = {run.figure for run in runs}
    name = figures.pop() if len(figures) == 1 else "score"

    def series(run: RunData) -> list[Series]:
        splits = run.splits if len(run.splits) > 1 and len(runs) == 1 else []
        return [
            (
                split if splits else "",
                run.evaluations,
                f"eval/{split}/{run.figure}/mean",
                _bounds(f"eval/{split}/{run.figure}"),
            )
            for split in ["average", *splits]
        ]

    caption = "Held-out prompts, with 95% intervals" + ("; the average of the splits." if _many(runs) else ".")
    return lines(runs, "evaluation", "Evaluation", caption, name, series, marked=True)


def _task_metrics(runs: Sequence[RunData]) -> list[Panel]:
    prefix, suffix = "train/metrics/", "/mean"
    names = {name for run in runs for row in run.iterations for name in row.values if name.startswith(prefix)}
    panels = []
    for number, metric in enumerate(sorted(names)[:_TASK_METRICS]):
        title = visible(metric.removeprefix(prefix).removesuffix(suffix), 40)
        caption = "The task's own metric, averaged over the members' answers."
        series = partial(_single, metric)
        panels.append(lines(runs, f"metric-{number}", title, caption, html.escape(title), series))
    return panels


def _single(metric: str, run: RunData) -> list[Series]:
    return [("", run.iterations, metric, None)]


def _labels(run: RunData) -> Panel:
    """Draw the counts of the commonest labels, ``correct`` first, and of all others together.

    Metrics have shares; where the number of answers does not follow from them, these are drawn.
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
    parts: dict[str, list[float | None]] = {
        label: [
            whole * sum(row.values.get(name, 0.0) for name in names)
            for row, whole in zip(run.iterations, wholes, strict=True)
        ]
        for label, names in groups.items()
    }
    steps = [row.step for row in run.iterations]
    unit, short = ("answers", "") if known else ("% of answers", "%")
    caption = "What the reward function said of the members' answers."
    return bars(steps, parts, "labels", "Reward labels", caption, unit, short)


def _answers(row: Row) -> int | None:
    """Return how many answers an iteration had: all their tokens over the mean of one."""
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


def _tokens(split: str) -> tuple[str, tuple[str, str]]:
    return f"eval/{split}/tokens/mean", _bounds(f"eval/{split}/tokens")


def _many(runs: Sequence[RunData]) -> bool:
    return any(len(run.splits) > 1 for run in runs)

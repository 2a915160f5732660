"""The page: one self-contained HTML file that loads nothing from the network."""

import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from typing import Any

from esplug.config import RunConfig, panel_of
from esplug.evaluation.statistics import Estimate
from esplug.report.figures import of_run
from esplug.report.plots import Panel
from esplug.report.run_data import RunData
from esplug.report.samples import groups
from esplug.report.text import shown, visible
from esplug.runs.summary import Score, duration, scores_of

_LOCATION = ("output_directory", "experiment_name")  # settings that are not compared between runs
SIZE = 1_000_000  # bytes that a page has at most, unless it is asked to be full


@dataclass(frozen=True, slots=True)
class Detail:
    """How much a page shows: points of a curve, samples per group (``None``: all), and characters of an answer."""

    points: int
    samples: int | None
    longest: int


_FULL = Detail(1_000_000, None, 100_000)
#: A page takes the first that keeps it below :data:`SIZE`.
_LEVELS = (Detail(400, 4, 3000), Detail(200, 2, 1500), Detail(100, 1, 600), Detail(30, 0, 0))


@dataclass(frozen=True, slots=True)
class Moment:
    """State of runs under way: a version that differs from that of every other state, and words for the reader."""

    version: str
    status: str


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text; the first cell of a row is its name."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def render(
    runs: Sequence[RunData],
    panels: Sequence[Panel],
    *,
    smoothing: float = 0.0,
    full: bool = False,
    live: Moment | None = None,
) -> str:
    """Return the page on one or several runs, with the figures of :func:`esplug.report.figures.compared`.

    Args:
        runs: the runs.
        panels: the figures.
        smoothing: weight of the moving average that the page starts with, in [0, 1).
        full: show every point and sample. Otherwise the page has about 1 MB at most.
        live: state of the runs, for a page that :mod:`esplug.report.live` serves and that refreshes itself.
    """
    page = ""
    for detail in [_FULL] if full else _LEVELS:
        page = _render(runs, panels, smoothing, detail, live)
        if len(page.encode(errors="backslashreplace")) < SIZE:
            break
    return page


def _render(
    runs: Sequence[RunData], panels: Sequence[Panel], smoothing: float, detail: Detail, live: Moment | None
) -> str:
    from jinja2 import Environment, StrictUndefined
    from jinja2.utils import htmlsafe_json_dumps

    here = files("esplug.report")
    names = ("page.css", "page.js", *(["live.js"] if live else []))
    style, *scripts = (here.joinpath(name).read_text(encoding="utf-8") for name in names)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "visible": visible,
        "shown": shown,
        "figure": lambda panel: htmlsafe_json_dumps(panel.drawing()),
    }
    page = environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8"))
    return page.render(
        title=" · ".join(run.label for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        made=time.strftime("%Y-%m-%d %H:%M"),
        runs=[_run_view(run, of_run(run) if len(runs) > 1 else [], detail) for run in runs],
        comparison=_comparison(runs) if len(runs) > 1 else None,
        panels=[panel.thinned(detail.points) for panel in panels],
        smooth=smoothing,
        longest=detail.longest,
        left_out=lambda groups: sum(len(group.pairs) for group in groups) < groups[0].total,
        style=style,
        scripts=scripts,
        live=live,
        # Whatever a model wrote, the browser runs only these scripts and loads nothing but, if live, this page anew.
        policy=f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src 'unsafe-inline'"
        + ("; connect-src 'self'" if live else ""),
    )


def _run_view(run: RunData, panels: Sequence[Panel], detail: Detail) -> dict[str, Any]:
    """Collect what the template shows of a run beside its data."""
    chosen = groups(run.before, run.after, detail.samples)
    answers = [list(row) for _, row in groupby(run.answers, key=lambda sample: sample.index)][: detail.samples]
    own = {"tiles": _tiles(run), "splits": _split_table(run), "groups": chosen, "answers": answers, "data": run}
    return own | {"panels": [panel.thinned(detail.points) for panel in panels], "settings": _settings(run.settings)}


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    """Return the headline numbers: name, value and detail."""
    summary, metric = run.summary, run.main_metric
    first, last, best = summary.first, summary.last, summary.best
    tiles = []
    if first and last and best:
        if first == last:
            tiles.append((metric, f"{last.mean:.3f}", f"95% interval {_interval(last)}"))
        else:
            change = f"change {_signed(run.change)}" if run.change else f"{_interval(first)} → {_interval(last)}"
            tiles.append((f"{metric} before → after", f"{first.mean:.3f} → {last.mean:.3f}", change))
            tiles.append((f"best {metric}", f"{best.mean:.3f}", f"{_interval(best)} at iteration {best.iteration}"))
    if run.iterations or summary.planned:
        planned = f" of {summary.planned:,}" if summary.planned is not None else ""
        tiles.append(("iterations", f"{summary.iterations:,}{planned}", _population(run.settings)))
    tokens = f"{run.tokens:,.0f} training tokens" if run.tokens else ""
    tiles.append(("time", duration(summary.seconds), tokens))
    return tiles


def _population(settings: Mapping[str, Any]) -> str:
    sizes = settings.get("population_size"), settings.get("batch_size")
    return f"{sizes[0]} members, batches of {sizes[1]}" if all(isinstance(size, int) for size in sizes) else ""


def _split_table(run: RunData) -> Table | None:
    """Compare each split's scores before and after training, with the paired change."""
    rows = []
    for split in [*run.splits, *(["average"] if len(run.splits) > 1 else [])]:
        scores = scores_of(run.evaluations, run.main_metric, split)
        change = run.change if split == "average" else run.changes.get(split)
        if scores:
            before = str(scores[0]) if len(scores) > 1 else ""
            n = f"{len(run.after[split].rows):,}" if split in run.after else ""
            rows.append((visible(split, 80), n, before, str(scores[-1]), _signed(change) if change else ""))
    columns = ("split", "prompts", f"{run.main_metric} before", "after", "change on the same prompts")
    return Table(columns, rows) if rows else None


def _comparison(runs: Sequence[RunData]) -> Table:
    """Compare the runs' results and the settings that differ, with one column per run."""
    summaries = [run.summary for run in runs]
    rows: list[tuple[str, list[str]]] = [
        ("state", [each.state for each in summaries]),
        ("metric", [run.main_metric for run in runs]),
        ("before", [str(each.first) if each.first else "" for each in summaries]),
        ("after", [str(each.last) if each.last else "" for each in summaries]),
        ("change on the same prompts", [_signed(run.change) if run.change else "" for run in runs]),
        ("best", [f"{each.best} at {each.best.iteration}" if each.best else "" for each in summaries]),
        ("iterations", [f"{each.iterations} of {'?' if each.planned is None else each.planned}" for each in summaries]),
        ("time", [duration(each.seconds) for each in summaries]),
        ("training tokens", [f"{run.tokens:,.0f}" for run in runs]),
    ]
    for name in dict.fromkeys(name for run in runs for name in run.settings if name not in _LOCATION):
        values = [shown(run.settings[name]) if name in run.settings else "" for run in runs]
        if len(set(values)) > 1:
            rows.append((name, values))
    cells = [(name, *(visible(value, 200) for value in values)) for name, values in rows]
    return Table(("", *(run.label for run in runs)), cells)


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group the settings as ``esplug train --help`` does."""
    grouped: dict[str, list[tuple[str, str]]] = {}
    for name, value in settings.items():
        panel = panel_of(name) if name in RunConfig.model_fields else "Other"
        grouped.setdefault(panel, []).append((name, shown(value)))
    return list(grouped.items())


def _interval(score: Score) -> str:
    return f"[{score.low:.3f}, {score.high:.3f}]"


def _signed(change: Estimate) -> str:
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def _hash(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"

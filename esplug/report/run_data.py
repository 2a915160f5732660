"""Data of a run for its report, read from a run directory in any state."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from esplug.checkpoints.seed_log import read
from esplug.errors import UserError
from esplug.evaluation.figures import Sample, SplitEvaluation
from esplug.evaluation.statistics import Estimate, average, compare
from esplug.loggers.metrics_file import FILE_NAME, Row, by_step, numbers, read_bytes, rows_of
from esplug.runs.directory import RunDirectory
from esplug.runs.summary import RunSummary, Score, main_figure, read_json, read_settings, scores_of, summarise

_ITERATION = re.compile(r"iteration(\d+)\.json")
_EVALUATION = re.compile(r"model_eval_task(.*)_iteration(\d+)\.json", re.DOTALL)
#: Metrics and labels that tasks name, possibly like the main metric: ``eval/SPLIT/metrics/NAME/mean``.
_NAMED_BY_TASK = re.compile("/(metrics|labels)/")
_LATEST = 3  # records of iterations to look into for the latest answers
_TEXTS, _NUMBERS = ("split", "prompt", "output", "label"), ("index", "sample", "reward", "tokens")


@dataclass(frozen=True)
class RunData:
    """A run as its report shows it.

    Attributes:
        label: the run's name, unique within the report.
        main_metric: ``pass@1`` or ``reward``.
        settings: content of ``config.toml``, not validated.
        checksum: of the final weights, 16 hex digits; empty if unknown.
        model: the saved model's folder, relative to the run's directory; empty if there is none.
        iterations, evaluations: metrics in order.
        before, after: samples of the first and last evaluation by split; a single evaluation is in both.
        answered: the latest iteration with training answers.
        answers: these (:mod:`esplug.runs.answers`), sorted by prompt.
        notes: warnings for the reader, such as damaged lines that were left out.
    """

    summary: RunSummary
    label: str
    main_metric: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    checksum: str
    model: str
    iterations: tuple[Row, ...]
    evaluations: tuple[Row, ...]
    before: Mapping[str, SplitEvaluation]
    after: Mapping[str, SplitEvaluation]
    answered: int
    answers: tuple[Sample, ...]
    notes: tuple[str, ...]

    @cached_property
    def scores(self) -> list[Score]:
        """The main metric of each evaluation, averaged over the splits."""
        return scores_of(self.evaluations, self.main_metric)

    @cached_property
    def splits(self) -> list[str]:
        """Names of the evaluation's splits."""
        names = (_split(name, f"/{self.main_metric}/mean") for row in self.evaluations for name in row.values)
        return sorted({name for name in names if name} - {"average"})

    @cached_property
    def changes(self) -> dict[str, Estimate]:
        """Change of each split's main metric; splits whose prompts differ between the evaluations are left out."""
        found = {}
        for name, before in self.before.items():
            after = self.after.get(name)
            if after is not None and after is not before and _prompts(before) == _prompts(after):
                by_passes = self.main_metric == "pass@1"
                pair = (before.passes(), after.passes()) if by_passes else (before.rewards, after.rewards)
                found[name] = compare(*pair).difference
        return found

    @cached_property
    def change(self) -> Estimate | None:
        """Change of the main metric, averaged over the splits; ``None`` if it is unknown for any split."""
        complete = bool(self.changes) and len(self.changes) == len(self.splits)
        return average(list(self.changes.values())) if complete else None

    @property
    def tokens(self) -> float:
        """Number of tokens that members generated in training."""
        pairs = ((row.get("train/tokens_per_second"), row.get("time/generate")) for row in self.iterations)
        return sum(speed * seconds for speed, seconds in pairs if speed is not None and seconds is not None)


def read_run(path: Path) -> RunData:
    """Read a run's directory, also while the run is active. Damaged parts are left out, with a note."""
    run, results, notes = RunDirectory(path), read_json(path / "results.json"), []
    rows, unreadable = rows_of(read_bytes(path / FILE_NAME))
    if unreadable:
        notes.append(f"{unreadable} of {len(rows) + unreadable} lines of {FILE_NAME} cannot be read and are left out")
    if not rows and (rows := list(_rows_of_records(run))):
        notes.append(f"{FILE_NAME} has no rows, so the metrics come from train-output and eval-output")
    iterations = by_step(rows, "train/")
    if failed := sum(row.values.get("train/rewards_failed", 0.0) for row in iterations):
        ungraded = f"{failed:,.0f} training answers could not be graded"
        notes.append(f"{ungraded} and have reward 0; their labels give the reason")
    for file in sorted(path.glob("*-from-iteration*")):  # settings or environment of a resumed run
        kind, _, iteration = file.stem.partition("-from-iteration")
        notes.append(f"resumed with a different {kind} at iteration {iteration}: see {file.name}")
    before, after = _samples(run, notes)
    answered, answers = _latest_answers(run)
    settings, fault = read_settings(path)
    notes += [fault] if fault else []
    checksum, summary = _checksum(run, results, notes), summarise(path)
    if summary.unchanged:
        notes.insert(0, f"nothing was learnt: weights unchanged, as {summary.unchanged}")
    return RunData(
        summary=summary,
        label=summary.name,
        main_metric=main_figure(results),
        settings=settings,
        environment=read_json(path / "environment.json"),
        checksum=checksum,
        model=_model(run, summary.iterations),
        iterations=iterations,
        evaluations=by_step(rows, "eval/"),
        before=before,
        after=after,
        answered=answered,
        answers=answers,
        notes=tuple(notes),
    )


def read_runs(paths: list[Path]) -> list[RunData]:
    """Read several runs; the labels of runs with the same name include their folders."""
    places = {path.resolve() for path in paths}
    return [replace(read_run(path), label=_label(path.resolve(), places)) for path in paths]


def _label(place: Path, places: set[Path]) -> str:
    """Return the shortest end of a path that no other path has."""
    ends = (place.parts[-length:] for length in range(1, len(place.parts) + 1))
    own = (end for end in ends if sum(other.parts[-len(end) :] == end for other in places) == 1)
    return str(Path(*next(own, place.parts)))


def _samples(run: RunDirectory, notes: list[str]) -> tuple[dict[str, SplitEvaluation], dict[str, SplitEvaluation]]:
    """Read the first and the last evaluation of each split that have samples, and note damage."""
    before, after = {}, {}
    files: dict[str, list[tuple[int, Path]]] = {}
    for named, path in _listed(run.evaluations, _EVALUATION):
        files.setdefault(named[1], []).append((int(named[2]), path))
    for found in files.values():
        found.sort()
        iteration, first = next(_readable(found, notes), (0, None))
        if first is None:
            continue
        later = [each for each in reversed(found) if each[0] > iteration]
        _, last = next(_readable(later, notes), (0, first))
        before[first.split], after[first.split] = first, last
    return before, after


def _readable(files: list[tuple[int, Path]], notes: list[str]) -> Iterator[tuple[int, SplitEvaluation]]:
    for iteration, path in files:
        record = read_json(path)
        rows, samples = _samples_of(record)
        if not samples or len(samples) < len(rows):
            notes.append(f"{path.name}: samples that cannot be read are left out")
        if samples:
            by_task = any(sample.correct is not None for sample in samples)
            yield iteration, SplitEvaluation(str(record.get("split", "")), samples, by_task=by_task)


def _latest_answers(run: RunDirectory) -> tuple[int, tuple[Sample, ...]]:
    """Read the answers of the latest iteration that has any; earlier versions of esplug recorded none."""
    files = sorted(((int(named[1]), path) for named, path in _listed(run.iterations, _ITERATION)), reverse=True)
    for iteration, path in files[:_LATEST]:
        if samples := _samples_of(read_json(path))[1]:
            return iteration, tuple(sorted(samples, key=lambda sample: sample.index))
    return 0, ()


def _samples_of(record: Mapping[str, Any]) -> tuple[list[Any], list[Sample]]:
    """Return a record's rows of samples, and those that are not damaged."""
    found = record.get("samples")
    rows = found if isinstance(found, list) else []
    return rows, [sample for row in rows if (sample := _sample(row))]


def _sample(row: Any) -> Sample | None:
    """Read a sample; ``None`` if it is damaged."""
    if not isinstance(row, Mapping):
        return None
    texts = all(isinstance(row.get(name), str) for name in _TEXTS)
    figures = numbers({name: row.get(name) for name in _NUMBERS})
    booleans = all(isinstance(row.get(name), bool) for name in ("passed", "finished"))
    said = row.get("conversation", [])
    if not isinstance(said, list) or not all(
        isinstance(each, Mapping) and all(isinstance(each.get(key), str) for key in ("role", "content"))
        for each in said
    ):
        return None
    if not texts or not booleans or len(figures) < len(_NUMBERS) or not isinstance(row.get("ended", ""), str):
        return None
    try:
        return Sample(**{name: row[name] for name in Sample.__slots__ if name in row})
    except TypeError:
        return None


def _prompts(evaluation: SplitEvaluation) -> list[tuple[int, int, str]]:
    return [(sample.index, sample.sample, sample.prompt) for sample in evaluation.samples]


def _rows_of_records(run: RunDirectory) -> Iterator[Row]:
    """Build the rows of a run without ``metrics.jsonl`` from its records of iterations and evaluations."""
    for named, path in _listed(run.iterations, _ITERATION):
        yield Row(int(named[1]), numbers(_mapping(read_json(path).get("metrics"))))
    evaluated: dict[int, dict[str, float]] = {}
    for named, path in _listed(run.evaluations, _EVALUATION):
        evaluated.setdefault(int(named[2]), {}).update(numbers(_mapping(read_json(path).get("metrics"))))
    for step, values in evaluated.items():
        yield Row(step, values | _averages(values))


def _split(name: str, ending: str) -> str:
    """Return the split in a metric's name, or an empty text if the name has another ending or a task chose it."""
    split = name.removeprefix("eval/").removesuffix(ending)
    return "" if not name.endswith(ending) or _NAMED_BY_TASK.search(f"{split}/") else split


def _averages(values: Mapping[str, float]) -> dict[str, float]:
    """Average the splits' scores; intervals only if there is one split."""
    averages = {}
    for metric in ("pass@1", "reward"):
        for bound in ("mean", "ci95_low", "ci95_high"):
            found = [value for name, value in values.items() if _split(name, f"/{metric}/{bound}")]
            if len(found) == 1 or (found and bound == "mean"):
                averages[f"eval/average/{metric}/{bound}"] = fmean(found)
    return averages


def _checksum(run: RunDirectory, results: Mapping[str, Any], notes: list[str]) -> str:
    """Return the checksum of the last weights; note if the seed log is damaged."""
    known = str(_mapping(results.get("model")).get("weights_checksum", ""))
    if not run.seed_log.exists():
        return known
    try:
        steps = read(run.seed_log).steps
    except UserError as error:
        fault = str(error).removeprefix(f"{run.seed_log}: ").partition("; ")[0]
        notes.append(f"{run.seed_log.name} cannot be read to its end: {fault}")
        return known
    return f"{steps[-1].checksum:016x}" if steps else known


def _model(run: RunDirectory, updates: int) -> str:
    folder = run.saved_model(updates)
    return str(folder.relative_to(run.path)) if folder else ""


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[re.Match[str], Path]]:
    """List the files with matching names; none if the folder cannot be read."""
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if named := pattern.fullmatch(path.name):
                yield named, path

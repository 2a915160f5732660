"""`esplug report`: the page of a run in any state, whatever a model wrote."""

import json
import re
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from esplug.errors import RunError
from esplug.evaluation.statistics import compare
from esplug.report.figures import of_one, of_run
from esplug.report.page import SIZE
from esplug.report.plots import Bars, Line, Panel
from esplug.report.png import figure
from esplug.report.run_data import read_run, read_runs
from esplug.report.samples import groups
from esplug.report.text import visible
from esplug.runs.directory import RunDirectory
from tests.helpers.browser import BROWSER, OPTIONS, needs_browser
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.runs import evaluation, make_run, metrics, sample


class Page(HTMLParser):
    """A page's text, its elements with their attributes, and its figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, Any] = {}
        self._inside = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        attributes = self.elements[-1][1] if self.elements else {}
        if self._inside not in ("script", "style"):
            self.texts.append(data)
        elif attributes.get("type") == "application/json":
            self.figures[str(attributes["id"])] = json.loads(data)


@pytest.fixture
def report(monkeypatch, capfd, tmp_path):
    """Return a function that makes a report on runs and parses the page."""

    def make(*paths: Path) -> Page:
        page = tmp_path / "page.html"
        code, out, err = run_cli(monkeypatch, capfd, "report", *map(str, paths), "--output", str(page))
        assert (code, out, err) == (0, f"{page}\n", "")
        return Page(page.read_text(encoding="utf-8"))

    return make


def lines_of(page: Page, name: str) -> dict[str, Any]:
    """Return a figure's lines or bars by their label."""
    return {each["label"]: each for each in page.figures[name]["lines"] + page.figures[name]["bars"]}


def test_the_page_shows_the_results(report, tmp_path) -> None:
    page = report(make_run(tmp_path, "mine").path)
    change = compare([1.0, 0, 0, 0], [0.0, 1, 1, 1]).difference
    assert "mine finished task sums · model owner/tiny" in page.text
    assert f"pass@1 before → after 0.250 → 0.750 change +0.500 [{change.low:+.3f}, {change.high:+.3f}]" in page.text
    assert "best pass@1 0.750 [0.301, 0.954] at iteration 2" in page.text
    assert "iterations 2 of 2" in page.text
    assert "time 24 s 1,600 training tokens" in page.text
    assert page.text.count("0000000000c0ffee") == 1
    assert "Details checksum of the weights 0000000000c0ffee" in page.text
    assert "Improved 3 of 4 answers" in page.text
    assert "Worsened 1 of 4 answers" in page.text
    assert "before 0" in page.text
    assert "after 3" in page.text
    assert "population_size 30" in page.text
    assert "python 3.11.7" in page.text


def test_conversations_are_shown_whole(report, tmp_path) -> None:
    said = [{"role": "assistant", "content": "Is it <5>?"}, {"role": "user", "content": "higher\x1b"}]
    said.append({"role": "assistant", "content": "Is it 7?"})
    talk = {"conversation": tuple(said), "ended": "max_turns", "output": "Is it 7?"}
    run = make_run(tmp_path, evaluations=[evaluation(0, [sample(0, 1.0, **talk), sample(1, 0.0, **talk)])])
    page = report(run.path)
    assert "2 turns · ended: max_turns assistant Is it <5>? user higher␛ assistant Is it 7?" in page.text
    file = run.evaluation("held_out", 0)
    record = json.loads(file.read_text())
    assert record["samples"][0]["conversation"] == said
    assert record["metrics"]["eval/held_out/turns/mean"] == 2
    for damaged in ("x", [3], [{"role": "user"}], [{"role": 3, "content": "x"}]):
        record["samples"][0]["conversation"] = damaged
        file.write_text(json.dumps(record))
        assert "samples that cannot be read are left out" in report(run.path).text


def test_the_figures_show_what_was_measured(report, tmp_path) -> None:
    rows = make_run(tmp_path, evaluations=[evaluation(0, [sample(0, 0.0), sample(1, 1.0)])])
    page = report(rows.path)
    (scores,) = lines_of(page, "run-evaluation").values()
    assert (scores["x"], scores["y"]) == ([0], [0.5])
    assert scores["high"][0] > 0.8
    (rewards,) = lines_of(page, "run-reward").values()
    assert rewards["y"] == [0.2, 0.21]
    assert (rewards["low"], rewards["high"]) == ([0.1, 0.1], [0.3, 0.31])
    phases = {name: trace["y"] for name, trace in lines_of(page, "run-phases").items()}
    assert phases == {
        "generation": [8, 8],
        "waiting for rewards": [0.5, 0.5],
        "update": [1.5, 1.5],
        "evaluation": [2, None],
    }
    use = {name: trace["y"][0] for name, trace in lines_of(page, "run-engines").items()}
    assert use == {"generating": 60, "switching weights": 10, "updating": 15, "idle": 15}
    labels = {name: trace["y"][0] for name, trace in lines_of(page, "run-labels").items()}
    assert labels == {"correct": 10, "wrong": 30}, "of 40 answers: 100 tokens/s for 8 s, 20 tokens each"
    assert set(lines_of(page, "run-length")) == {"training", "evaluation"}
    assert set(lines_of(page, "run-steps")) == {"alpha", "sigma"}
    assert "run-correlation" not in page.figures  # members were not mirrored


def test_runs_share_their_figures(report, tmp_path) -> None:
    one = make_run(tmp_path, "one", sigma=0.002)
    two = make_run(tmp_path, "two", done=3)
    page = report(one.path, two.path)
    assert set(lines_of(page, "all-reward")) == {"one", "two"}
    assert set(lines_of(page, "all-evaluation")) == {"one", "two"}
    assert {name for name in page.figures if name.endswith("-phases")} == {"run1-phases", "run2-phases"}
    assert "sigma 0.002 0.001" in page.text
    assert "n_iterations 2 3" in page.text
    assert "time 24 s 34 s" in page.text
    assert page.text.count("experiment_name") == 2, "only in each run's own settings"


def test_runs_with_the_same_name_get_different_labels(tmp_path) -> None:
    paths = [make_run(tmp_path / folder, "run", done=0).path for folder in ("a/x", "b/x", "c")]
    assert [run.label for run in read_runs(paths)] == ["a/x/run", "b/x/run", "c/run"]
    assert [run.label for run in read_runs(paths[1:])] == ["x/run", "c/run"]
    assert [run.label for run in read_runs(paths[:1])] == ["run"]


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</pre></article><h1>no</h1>",
    "{{ 7*7 }} {% raw %} ${x}",
    "<!-- <script>",
    "\x00\x1b[31mred\x7f\u202etxt\ud83d\u2028",
    "<a href='http://example.org'>x</a>",
    "é五🙂 &amp; &lt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_models_and_tasks_is_never_markup(text, report, tmp_path) -> None:
    other = make_run(tmp_path, "other").path
    harmless = report(make_run(tmp_path, "harmless").path, other)
    details = {
        "prompt": text,
        "target": text,
        "output": text,
        "label": text,
        "split": text.replace("\ud83d", ""),
        "metrics": {text: 1.0},
    }
    before, after = ([sample(i, float(i != k), **details) for i in range(4)] for k in (0, 1))
    run = make_run(tmp_path, evaluations=[evaluation(0, before), evaluation(2, after)])
    run.write_status("failed", RunError(text))
    in_toml = text.replace("\ud83d", "")
    settings = {"task": in_toml, "model_name": in_toml, in_toml: in_toml, "task_options": {in_toml: in_toml}}
    settings |= {"notes": in_toml, "tags": [in_toml]}
    run.config.write_text(tomli_w.dumps(settings), encoding="utf-8")
    (run.path / "environment.json").write_text(json.dumps({text: text, "packages": {text: [text]}}))
    with (run.path / "metrics.jsonl").open("a") as file:
        named = {f"train/labels/{text}": 0.5, f"train/metrics/{text}/mean": 0.5}
        file.write(json.dumps({"step": 2, **metrics(2, **named)}) + "\n")
    renamed = tmp_path / text.translate({ord("/"): "\u2215", 0: None, 0xD83D: "\udcff"})  # legal in a folder's name
    run.path.rename(renamed)
    page = report(renamed, other)
    kinds = {tag for tag, _ in harmless.elements} | {"code"}
    assert {tag for tag, _ in page.elements} <= kinds
    assert sum(tag == "script" for tag, _ in page.elements) == len(page.figures) + 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not [attributes for _, attributes in page.elements if attributes.keys() & {"src", "href"}]
    shown = "".join(page.texts)
    assert [each for each in (text, in_toml, renamed.name) if visible(each) not in shown] == []
    assert visible(shown, len(shown)) == shown


def test_invisible_characters_are_spelled_out_and_long_text_is_cut() -> None:
    assert visible("a\x00\x1b\x7f\u202e\ud800\tb\n") == "a␀␛\\x7f\\u202e\\ud800\tb\n"
    cut = visible("x" * 1_000_000)
    assert len(cut) < 3100
    assert "997,000 characters left out" in cut


def not_json(path: Path) -> None:
    rows = path.read_bytes()
    path.write_bytes(b"\xff\n{\n[1]\n" + rows + b'{"step": 9, "train/reward/me')


def nulls(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({k: None if "reward" in k else v for k, v in row.items()}) + "\n" for row in rows)
    )


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (not_json, "3 of 7 lines of metrics.jsonl cannot be read and are left out"),
        (nulls, None),
        (Path.unlink, "metrics.jsonl has no rows, so the metrics come from train-output and eval-output"),
    ],
)
def test_damaged_metrics_leave_the_rest_readable(damage, note, report, tmp_path) -> None:
    run = make_run(tmp_path)
    damage(run.path / "metrics.jsonl")
    page = report(run.path)
    assert [text for text in [note] if text and text not in page.text] == []
    assert sum(attributes.get("class") == "note" for _, attributes in page.elements) == (note is not None)
    (scores,) = lines_of(page, "run-evaluation").values()
    assert scores["y"] == [0.25, 0.75]
    assert ("run-reward" in page.figures) == (damage is not nulls)


def test_damaged_samples_and_settings_are_noted(report, tmp_path) -> None:
    run = make_run(tmp_path, done=4, evaluations=[evaluation(k, [sample(0, k / 4)]) for k in (0, 2, 4)])
    undecided = json.dumps({"split": "held_out", "samples": [1, {"reward": None}, sample(0, 1.0, passed=None).row()]})
    for iteration, content in ((0, "{"), (4, undecided)):
        run.evaluation("held_out", iteration).write_text(content)
    run.config.write_text("=")
    page = report(run.path)
    assert "damaged" in page.text
    assert "config.toml is not TOML" in page.text
    for iteration in (0, 4):
        assert f"model_eval_taskheld_out_iteration{iteration}.json: samples that cannot be read" in page.text
    assert "All the same reward 1 of 1 answers" in page.text


def test_a_damaged_log_is_noted_without_another_commands_remedy(report, tmp_path) -> None:
    run = make_run(tmp_path, done=3)
    data = bytearray(run.seed_log.read_bytes())
    data[data.index(b"\n") + 20] ^= 255
    run.seed_log.write_bytes(data)
    (note,) = read_run(run.path).notes
    assert note.startswith("seeds.log cannot be read to its end: the record of iteration 0")
    assert note.endswith("is damaged")
    assert note in report(run.path).text


def test_numbers_that_overflow_are_left_out(report, tmp_path) -> None:
    run = make_run(tmp_path)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": {"9" * 400}, "train/reward/mean": 1}}\n')
        file.write(f'{{"step": 2, "train/reward/mean": {"9" * 400}, "time/iteration": 1e999}}\n')
    page = report(run.path)
    assert "1 of 6 lines of metrics.jsonl cannot be read" in page.text
    assert "time 24 s" in page.text
    (rewards,) = lines_of(page, "run-reward").values()
    assert rewards["y"] == [0.2, 0.21]


@pytest.mark.parametrize("damage", [None, Path.unlink])
def test_a_metric_or_label_of_a_task_is_never_taken_for_a_split(damage, report, tmp_path) -> None:
    details = {"correct": None, "metrics": {"reward": 7.0, "x/reward": 7.0}, "label": "reward"}
    both = [[sample(i, i + k, **details) for i in range(3)] for k in (0.0, 2.0)]
    runs = [evaluation(2 * k, samples, by_task=False) for k, samples in enumerate(both)]
    run = make_run(tmp_path, evaluations=runs)
    if damage:
        damage(run.path / "metrics.jsonl")
    assert read_run(run.path).splits == ["held_out"]
    assert [score.mean for score in read_run(run.path).scores] == [1.0, 3.0]
    if not damage:
        assert "reward before → after 1.000 → 3.000 change +2.000" in report(run.path).text


def test_a_report_on_an_active_run(report, tmp_path) -> None:
    run = make_run(tmp_path, done=3, n_iterations=9, status="running", evaluations=[evaluation(0, [sample(0, 1.0)])])
    (run.path / "results.json").unlink()
    page = report(run.path)
    assert "iterations 3 of 9" in page.text
    assert "Answer reward 1" in page.text


def test_a_resumed_run_names_the_iteration_and_the_changed_settings(report, tmp_path) -> None:
    run = make_run(tmp_path)
    (run.path / "config-from-iteration1.toml").touch()
    assert "resumed with a different config at iteration 1: see config-from-iteration1.toml" in report(run.path).text


@pytest.mark.parametrize("evaluations", [[], None])
def test_a_run_with_one_evaluation_or_none(evaluations, report, tmp_path) -> None:
    run = make_run(tmp_path, done=0 if evaluations is None else 2, evaluations=evaluations)
    page = report(run.path)
    figures = {name.partition("-")[2] for name in page.figures}
    if evaluations is None:
        assert "run evaluated" in page.text
        assert figures == {"evaluation", "length", "phases"}
        assert "Best 1 of 4 answers" in page.text
        assert "Worst 3 of 4 answers" in page.text
    else:
        assert "Samples" not in page.text
        assert figures == {"reward", "length", "speed", "steps", "phases", "engines", "labels"}


def test_a_run_with_only_settings(report, tmp_path) -> None:
    run = make_run(tmp_path, done=0, evaluations=[], n_iterations=5, status="failed")
    assert "run failed" in report(run.path).text


def test_rewards_are_the_main_metric_if_the_task_does_not_say_what_is_correct(report, tmp_path) -> None:
    runs = [evaluation(k, [sample(i, 0.1 * i + k, correct=None) for i in range(3)], by_task=False) for k in (0, 2)]
    page = report(make_run(tmp_path, evaluations=runs).path)
    assert "reward before → after 0.100 → 2.100 change +2.000 [+2.000, +2.000]" in page.text


def test_splits_are_shown_separately_and_averaged(report, tmp_path) -> None:
    splits = [[sample(i, float(i < k), split) for split in ("a", "b") for i in range(4)] for k in (1, 2)]
    page = report(make_run(tmp_path, evaluations=[evaluation(2 * k, rows) for k, rows in enumerate(splits)]).path)
    assert set(lines_of(page, "run-evaluation")) == {"average", "a", "b"}
    assert re.search(r"a 4 0\.250 \[[^]]+] 0\.500 \[[^]]+] \+0\.250", page.text)
    assert re.search(r"average 0\.250 \[[^]]+] 0\.500 \[[^]]+] \+0\.250", page.text)


def test_different_prompts_are_not_compared(tmp_path) -> None:
    before, after = ([sample(0, k, prompt=str(k))] for k in (0, 1))
    run = read_run(make_run(tmp_path, evaluations=[evaluation(0, before), evaluation(2, after)]).path)
    assert run.change is None
    assert groups(run.before, run.after) == []


def add_iterations(run: RunDirectory, count: int, **others: float) -> None:
    with (run.path / "metrics.jsonl").open("a") as file:
        for iteration in range(count):
            file.write(json.dumps({"step": iteration, **metrics(iteration, **others)}) + "\n")


def test_long_runs_make_small_figures_with_the_true_extremes(tmp_path) -> None:
    run = make_run(tmp_path, done=1, evaluations=[], n_iterations=5000)
    add_iterations(run, 5000)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3333, **metrics(3333, **{"train/reward/max": 999.0})}) + "\n")
    panels = [panel.thinned(400) for panel in of_one(read_run(run.path))]
    assert sum(len(json.dumps(panel.drawing())) for panel in panels) < 200_000
    assert all("Each point is 13 iterations" in panel.caption for panel in panels)
    (line,) = next(panel.lines for panel in panels if panel.name == "reward")
    assert max(line.high) == 999
    assert len(line.x) <= 400


def test_points_of_thinned_curves_are_means_and_short_curves_are_unchanged() -> None:
    line = Line("m", "#000000", 0, list(range(8)), [float(step) for step in range(8)], [], [], False)
    panel = Panel("m", "M", "Caption.", "m", (line,))
    (thinned,) = panel.thinned(4).lines
    assert (thinned.x, thinned.y) == ([0, 2, 4, 6], [0.5, 2.5, 4.5, 6.5])
    assert panel.thinned(8) is panel


def big_runs(folder: Path, count: int, rows: int, iterations: int) -> list[Path]:
    """Make runs with long answers, in characters that take several bytes."""
    found = []
    for number in range(count):
        before, after = (
            [sample(i, float(i % 3 == k), output="<é&>" * 3000, prompt="<é&>" * 3000 + str(i)) for i in range(rows)]
            for k in range(2)
        )
        both = [evaluation(0, before), evaluation(iterations, after)]
        run = make_run(folder, f"run{number}", done=1, n_iterations=iterations, evaluations=both)
        add_iterations(run, iterations, **{f"train/labels/{letter}": 0.1 for letter in "abcdefgh"})
        found.append(run.path)
    return found


@pytest.mark.parametrize(("count", "rows", "iterations"), [(1, 64, 3000), (6, 8, 450)])
def test_a_page_has_less_than_a_megabyte_unless_it_is_asked_to_be_full(
    count, rows, iterations, monkeypatch, capfd, tmp_path
) -> None:
    runs = big_runs(tmp_path, count, rows, iterations)
    pages = []
    for flags in ([], ["--full"]):
        page = tmp_path / "page.html"
        assert run_cli(monkeypatch, capfd, "report", *map(str, runs), "--output", str(page), *flags)[0] == 0
        pages.append((page.stat().st_size, Page(page.read_text(encoding="utf-8"))))
    (size, short), (_, full) = pages
    assert size < SIZE
    assert "characters left out" in short.text
    assert "esplug report --full shows all answers" in short.text
    assert "Each point is " in short.text
    assert "--full" not in full.text
    assert "left out" not in full.text
    assert "Each point is " not in full.text
    n_pages = count * rows
    assert sum(attributes.get("class") == "sample" for _, attributes in full.elements) == n_pages


def test_smoothing_is_the_debiased_moving_average_of_training_curves_only() -> None:
    line = Line("m", "#000000", 0, [0, 1, 2], [1.0, 3.0, 2.0], [], [], False)
    assert line.smoothed(0.5) == pytest.approx([1.0, (0.5 + 3) / 1.5, (0.25 + 1.5 + 2) / 1.75])
    assert line.smoothed(0.0) == [1.0, 3.0, 2.0]


@pytest.mark.parametrize(("evaluated", "points", "curves"), [(False, 3, 2), (True, 3, 1), (False, 2, 1)])
def test_plotly_gets_smoothed_curves_and_no_markup(evaluated, points, curves) -> None:
    pytest.importorskip("plotly", reason='no plotly: pip install "esplug[png]"')
    line = Line("<b>m</b>", "#000000", 0, [0, 1, 2][:points], [1.0, 3.0, 2.0][:points], [], [], evaluated)
    part = Bars("<i>", "#000000", [1.0])
    drawn = figure(Panel("m", "M", "", "<u>", (line,), (part,), [0]), 0.5)
    assert len(drawn.data) == curves + 1
    assert "<" not in str(drawn.to_plotly_json())


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_hardware_is_drawn_as_far_as_it_is_known(device, report, tmp_path) -> None:
    run = make_run(tmp_path)
    known = {"system/driver_memory": 0.5, "system/engine_memory": 3.0}
    if device == "gpu":
        known |= {"system/gpu_memory": 70.0, "system/gpu_utilization": 90.0}
    add_iterations(run, 3, **known)
    page = report(run.path)
    drawn = {label: line["y"][0] for label, line in lines_of(page, "run-memory").items()}
    assert drawn == {"driver": 0.5, "engines": 3.0} | ({"GPU": 70.0} if device == "gpu" else {})
    assert ("run-gpu" in page.figures) == (device == "gpu")
    assert ("GPU" in page.text) == (device == "gpu")


def test_notes_and_tags_are_shown(report, tmp_path) -> None:
    page = report(make_run(tmp_path, notes="One line.\nAnother.", tags=["cpu", "first try"]).path)
    assert "model owner/tiny cpu first try One line. Another." in page.text


def test_the_page_is_written_to_the_run_or_the_current_folder(monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = make_run(tmp_path, "one").path, make_run(tmp_path, "two").path
    for arguments, page in (([one], one / "report.html"), ([one, two], Path("report.html"))):
        for _ in range(2):  # the second page replaces the first
            code, out, _ = run_cli(monkeypatch, capfd, "report", *map(str, arguments))
            assert (code, out) == (0, f"{page}\n")
            assert page.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mien"], ["no such directory", "did you mean", "mine"]),
        (["."], ["not a run's directory", "did you mean mine"]),
        (["mine/config.toml"], ["not a directory"]),
        (["mine", "--output", "no/where/page.html"], ["no/where/page.html", "cannot be written", "--output"]),
        (["mine", "--output", "mine"], ["cannot be written", "--output"]),
        (["mine", "--smooth", "1.5"], ["--smooth 1.5", "0.99"]),
        (["mine", "--smooth", "nan"], ["--smooth nan", "0.99"]),
    ],
)
def test_mistakes_are_one_line(arguments, words, monkeypatch, capfd, tmp_path) -> None:
    make_run(tmp_path, "mine")
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(monkeypatch, capfd, "report", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert [word for word in words if word not in err] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_frequent_labels_are_drawn_one_by_one_as_counts_or_shares(tmp_path) -> None:
    run = make_run(tmp_path, done=1, evaluations=[], n_iterations=3)
    many = {f"train/labels/error:{number}": 0.01 * number for number in range(1, 9)}
    row = {"step": 1, **metrics(1, **many)}
    (run.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    traces = {panel.name: panel.bars for panel in of_run(read_run(run.path))}["labels"]
    assert [trace.label for trace in traces] == [
        *("correct", "wrong", "error:8", "error:7", "error:6", "error:5", "others")
    ]
    assert traces[-1].y == [4.0]
    (run.path / "metrics.jsonl").write_text(json.dumps(row | {"train/tokens_per_second": None}) + "\n")
    traces = {panel.name: panel.bars for panel in of_run(read_run(run.path))}["labels"]
    assert (traces[0].y, traces[-1].y) == ([25.0], [10.0])


def test_png_without_kaleido_is_a_one_line_error_and_the_page_is_written(monkeypatch, capfd, tmp_path) -> None:
    run = make_run(tmp_path)
    monkeypatch.setitem(sys.modules, "kaleido", None)
    code, out, err = run_cli(monkeypatch, capfd, "report", str(run.path), "--png")
    assert (code, len(err.splitlines())) == (2, 1)
    assert 'pip install "esplug[png]"' in err
    assert out == f"{run.path / 'report.html'}\n"
    assert (run.path / "report.html").exists()


def test_png_without_a_browser_is_a_one_line_error_and_the_page_is_written(monkeypatch, capfd, tmp_path) -> None:
    pytest.importorskip("kaleido", reason='no kaleido: pip install "esplug[png]"')
    run = make_run(tmp_path)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    code, out, err = run_cli(monkeypatch, capfd, "report", str(run.path), "--png")
    assert (code, out, len(errors_of(err))) == (2, f"{run.path / 'report.html'}\n", 1)
    assert "apt install chromium" in err
    assert "Traceback" not in err


def browse(page: Path) -> tuple[str, str, list[str]]:
    """Open a page and write a screenshot beside it. Return its DOM, its console messages and the URLs it fetched."""
    log = page.with_suffix(".net.json")
    options = [
        *OPTIONS,
        f"--user-data-dir={page.parent / 'profile'}",
        "--window-size=1280,1600",
        "--virtual-time-budget=5000",
    ]
    options += [f"--log-net-log={log}", "--enable-logging=stderr", f"--screenshot={page.with_suffix('.png')}"]
    done = subprocess.run([BROWSER, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    messages = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    # Requests of the browser itself have no initiator.
    fetched = re.findall(r'"initiator":"null".*?"url":"(https?:[^"]+)"', log.read_text(encoding="utf-8"))
    return done.stdout, messages, fetched


@needs_browser
def test_a_browser_draws_the_page_without_messages_or_network(report, tmp_path) -> None:
    from PIL import Image

    hostile = [evaluation(k, [sample(i, float(i != k), output=HOSTILE[i]) for i in range(4)]) for k in (0, 2)]
    page = report(make_run(tmp_path, evaluations=hostile).path, make_run(tmp_path, "other", antithetic=True).path)
    elements, messages, fetched = browse(tmp_path / "page.html")
    assert (messages, fetched) == ("", []), "an error, or a violation of the page's policy"
    assert elements.count('viewBox="0 0 ') >= len(page.figures) > 10
    colours = Image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 100
    other = tmp_path / "other.html"
    other.write_text("<img src=http://esplug.invalid/x><script>undefined.x</script>")
    _, messages, fetched = browse(other)
    assert "TypeError" in messages, "this test would not notice errors"
    assert fetched == ["http://esplug.invalid/x"]


def look(page: Path, width: int, script: str) -> Any:
    """Open a page in a frame of a width, without its policy, and return the value of a JavaScript expression there."""
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    probe = f"<script>setTimeout(() => {{ parent.document.title = JSON.stringify({script}) }}, 500)</script></body>"
    frame = escape(text.replace("</body>", probe))
    outer = page.with_name("outer.html")
    outer.write_text(f'<iframe width={width} height=900 frameborder=0 srcdoc="{frame}"></iframe>', encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(outer)[0])
    assert title
    return json.loads(unescape(title[1]))


@needs_browser
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_the_page_fits_every_width(width, report, tmp_path) -> None:
    name = "a_long_name_without_a_blank_" * 6
    long = {"task": name, "model_name": name, "notes": name, "tags": [name[:64]], "task_options": {name: name}}
    runs = [make_run(tmp_path, f"{k}{name}", **long).path for k in "ab"]
    for run in runs:
        with (run / "metrics.jsonl").open("a") as file:
            named = {f"train/labels/{name}": 0.5, f"train/metrics/{name}/mean": 1e300, "train/tokens/mean": -1e-300}
            file.write(json.dumps({"step": 2, **metrics(2, **named)}) + "\n")
    for paths in (runs[:1], runs):
        page = report(*paths)
        found = look(
            tmp_path / "page.html",
            width,
            "[innerWidth, document.documentElement.scrollWidth, document.querySelectorAll('.plot > svg').length]",
        )
        assert found[0] == width >= found[1]
        assert found[2] == len(page.figures)


@needs_browser
@pytest.mark.parametrize(("evaluations", "intervals", "lines"), [(1, 1, 0), (2, 2, 0), (3, 0, 1)])
def test_only_three_evaluations_or_more_make_a_curve(evaluations, intervals, lines, report, tmp_path) -> None:
    made = [evaluation(k, [sample(i, float(i < k)) for i in range(4)]) for k in range(evaluations)]
    report(make_run(tmp_path, done=4, evaluations=made).path)
    drawn = "['.interval', '.line:not(.interval)', 'circle'].map((kind) => document.querySelector(" + (
        "'[data-figure=run-evaluation]').querySelectorAll('svg ' + kind).length)"
    )
    assert look(tmp_path / "page.html", 800, drawn) == [intervals, lines, evaluations]


ACT = """(() => {
    const plot = document.querySelector('[data-figure=run-length]');
    const key = (name) => plot.dispatchEvent(new KeyboardEvent('keydown', { key: name }));
    key('ArrowRight'), key('ArrowRight');
    const tip = plot.querySelector('.tip').textContent;
    const button = plot.parentElement.querySelector('button');
    button.click();
    const slider = document.getElementById('smoothing');
    const before = document.querySelectorAll('.smoothed').length;
    slider.value = 0;
    slider.dispatchEvent(new Event('input'));
    return [tip, button.getAttribute('aria-pressed'), plot.querySelectorAll('.raw, .line').length,
            before, document.querySelectorAll('.smoothed').length];
})()"""


@needs_browser
def test_keys_show_values_the_legend_hides_lines_and_the_slider_smooths(monkeypatch, capfd, tmp_path) -> None:
    run = make_run(tmp_path, evaluations=[])
    with (run.path / "metrics.jsonl").open("a") as file:
        for step, tokens in enumerate((10.0, 30.0, 20.0)):
            values = metrics(step, **{"train/tokens/mean": tokens, "train/metrics/x/mean": 1.0})
            file.write(json.dumps({"step": step, **values}) + "\n")
    made = [evaluation(k, [sample(0, 1.0, tokens=7)]) for k in (0, 1, 3)]
    for each in made:
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": each.iteration, **each.metrics()}) + "\n")
    page = tmp_path / "page.html"
    assert run_cli(monkeypatch, capfd, "report", str(run.path), "--output", str(page), "--smooth", "0.5")[0] == 0
    tip, pressed, drawn, smooth, none = look(page, 800, ACT)
    assert tip == "iteration 1training 30, smoothed 23.33evaluation 7 [7, 7]"
    assert (pressed, drawn) == ("false", 1), "the evaluation's line is left"
    assert smooth > 4
    assert none == 0


@needs_browser
def test_png_files_have_the_size_for_papers(monkeypatch, capfd, tmp_path) -> None:
    pytest.importorskip("kaleido", reason='no kaleido: pip install "esplug[png]"')
    from PIL import Image

    run = make_run(tmp_path, evaluations=[])
    code, out, _ = run_cli(monkeypatch, capfd, "report", str(run.path), "--png")
    pictures = out.splitlines()[1:]
    assert code == 0
    assert str(run.path / "report-reward.png") in pictures
    assert {Image.open(picture).size for picture in pictures} == {(1920, 1200)}

"""`esplug report`: what the page of a run shows."""

import json
from pathlib import Path

import pytest

from esplug.evaluation.statistics import compare
from esplug.report.figures import of_one, of_run
from esplug.report.page import SIZE
from esplug.report.plots import Bars, Line, Panel
from esplug.report.png import figure
from esplug.report.run_data import read_run, read_runs
from esplug.runs.directory import RunDirectory
from tests.helpers.cli import run_cli
from tests.helpers.report_pages import Page, lines_of
from tests.helpers.runs import evaluation, make_run, metrics, sample


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

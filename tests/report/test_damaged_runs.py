"""`esplug report` on hostile text and on runs that are damaged or not complete."""

import json
import re
from pathlib import Path

import pytest
import tomli_w

from esplug.errors import RunError
from esplug.report.run_data import read_run
from esplug.report.samples import groups
from esplug.report.text import visible
from tests.helpers.report_pages import HOSTILE, lines_of
from tests.helpers.runs import evaluation, make_run, metrics, sample


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

"""What ``results.json`` holds."""

import json
from pathlib import Path

import pytest

from esplug.config import make_config
from esplug.data.splits import EvaluationSplit
from esplug.evaluation.figures import Evaluation
from esplug.planning.placement import Plan
from esplug.runs.result import results
from tests.helpers.evaluations import split

ASKED = {"s": EvaluationSplit(["one", "two"], [[1], [2]], ["1", "2"]), "t": EvaluationSplit(["three"], [[3]], ["3"])}
SAMPLED = {"eval_n_samples": 2, "eval_temperature": 0.8, "eval_top_p": 0.9, "pass_k": [1, 2], "seed": 5}


def record(model: str = "/models/tiny", by_task: bool = True, **settings) -> dict:
    rows = [[(1.0, True), (0.5, False)], [(0.25, False), (0.25, False)], [(0.0, False), (0.0, False)]]
    splits = [
        split("s", *rows[:2], pass_k=(1, 2), by_task=by_task),
        split("t", rows[2], pass_k=(1, 2), by_task=by_task),
    ]
    config = make_config({"model_name": "tiny", "n_iterations": 0}, SAMPLED, settings)
    return results(config, Path(model), 0x1F, Plan(2, "cpu", 0, 1), ASKED, Evaluation(3, splits, 1.23456))


def test_it_names_model_sampling_data_and_software() -> None:
    settings = {"max_tokens": 9, "stop": ["x"], "mini_batch_size": 7, "dtype": "float32", "checkpoint": "runs/c"}
    written = record(**settings)
    assert written["iteration"] == 3
    assert written["model"] == {
        **{"name": "tiny", "checkpoint": "runs/c", "revision": None, "weights_checksum": "000000000000001f"}
    }
    assert written["sampling"] == {
        **{"n_samples": 2, "temperature": 0.8, "top_p": 0.9, "max_tokens": 9, "stop": ["x"], "seed": 5},
        **{"mini_batch_size": 7, "dtype": "float32"},
    }
    assert written["seconds"] == 1.235
    assert make_config(written["config"]) == make_config({"model_name": "tiny", "n_iterations": 0}, SAMPLED, settings)
    assert written["environment"]["packages"]["numpy"]
    assert json.loads(json.dumps(written, allow_nan=False)) == written


def test_every_figure_has_its_interval_and_n() -> None:
    written = record()
    assert {name: (each["rows"], each["answers"]) for name, each in written["splits"].items()} == {
        "s": (2, 4),
        "t": (1, 2),
    }
    assert list(written["splits"]["s"]["figures"]) == ["pass@1", "pass@2", "reward", "tokens", "finished"]
    assert list(written["average"]) == ["pass@1", "pass@2", "reward"]
    figures = [each["figures"] for each in written["splits"].values()] + [written["average"]]
    for figure in (figure for each in figures for figure in each.values()):
        assert figure.keys() == {"mean", "ci95_low", "ci95_high", "n"}
        assert figure["ci95_low"] <= figure["mean"] <= figure["ci95_high"]
    assert written["splits"]["s"]["figures"]["reward"]["mean"] == 0.5
    assert written["splits"]["s"]["figures"]["pass@2"]["n"] == 2
    assert written["average"]["reward"]["mean"] == 0.25
    assert written["splits"]["s"]["fingerprint"] == ASKED["s"].fingerprint() != written["splits"]["t"]["fingerprint"]


@pytest.mark.parametrize(
    ("by_task", "max_reward", "rule"),
    [
        (True, 1.0, "correct, as the task says"),
        (False, 1.0, "reward at least 1"),
        (False, 0.25, "reward at least 0.25"),
    ],
)
def test_it_says_what_passes(by_task, max_reward, rule) -> None:
    written = record(by_task=by_task, max_reward=max_reward)
    assert [each["passes"] for each in written["splits"].values()] == [rule, rule]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("folder", "revision"),
    [
        (f"/home/u/.cache/huggingface/hub/models--owner--tiny/snapshots/{COMMIT}", COMMIT),
        (f"/cache/snapshots/{COMMIT}/part", COMMIT),
        (f"/cache/snapshots/{COMMIT}0", None),
        ("/cache/snapshots/main", None),
        ("/models/tiny", None),
    ],
)
def test_a_model_from_the_hub_has_its_commit(folder, revision) -> None:
    assert record(folder)["model"]["revision"] == revision


def test_it_says_where_the_task_comes_from() -> None:
    task = record(task="countdown", task_options={"shots": 1}, eval_dataset="rows.jsonl")["task"]
    assert (task["name"], task["distribution"]) == ("countdown", "esplug-tasks-countdown")
    assert task["version"]
    assert (task["options"], task["dataset"]) == ({"shots": 1}, "rows.jsonl")
    assert record(task="custom")["task"] == {"name": "custom", "options": {}, "dataset": None}

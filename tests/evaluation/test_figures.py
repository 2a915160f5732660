"""Figures of an evaluation: what they are made of, and the names they are logged under."""

import json
from statistics import fmean

import pytest

from esplug.evaluation.figures import Evaluation, SplitEvaluation
from esplug.evaluation.statistics import average, mean_estimate, pass_at_k, proportion_estimate
from tests.helpers.evaluations import sample, split


def test_with_one_answer_pass_at_1_is_the_share_that_passes() -> None:
    evaluated = split("s", [(1.1, True)], [(0.1, False)], [(0.06, False)], [(1.0, True)])
    assert evaluated.passes() == [1, 0, 0, 1]
    assert evaluated.pass_at_1 == proportion_estimate(2, 4)
    assert evaluated.reward == mean_estimate([1.1, 0.1, 0.06, 1.0])


def test_several_answers_to_a_prompt_count_as_one_prompt() -> None:
    rows = [
        [(1.0, True), (0.0, False), (1.0, True), (0.0, False)],
        [(0.0, False)] * 4,
        [(1.0, True), (0.5, False), (0.5, False), (0.0, False)],
    ]
    evaluated = split("s", *rows, pass_k=(1, 2, 4))
    assert [len(row) for row in evaluated.rows] == [4, 4, 4]
    assert evaluated.passes() == [0.5, 0.0, 0.25]
    assert evaluated.passes(2) == [pass_at_k(4, 2, 2), 0.0, pass_at_k(4, 1, 2)]
    assert evaluated.figures["pass@1"] == mean_estimate([0.5, 0.0, 0.25])
    assert evaluated.figures["pass@4"] == proportion_estimate(2, 3)
    assert evaluated.figures["reward"] == mean_estimate([0.5, 0.0, 0.5])
    assert {figure.n for figure in evaluated.figures.values()} == {3}


def test_figures_of_a_split() -> None:
    rows = [
        [{"label": "right", "tokens": 4, "metrics": {"format": 1.0, "steps": 3.0}}, {"label": "wrong", "tokens": 6}],
        [{"label": "wrong", "tokens": 8, "finished": False, "metrics": {"format": 0.0}}, {"label": "", "tokens": 8}],
        [{"label": "wrong", "tokens": 2}, {"label": "wrong", "tokens": 2, "finished": False}],
    ]
    samples = [
        sample(index=index, sample=number, **details)
        for index, row in enumerate(rows)
        for number, details in enumerate(row)
    ]
    figures = SplitEvaluation("s", samples, (1, 2)).figures
    assert list(figures) == [
        *("pass@1", "pass@2", "reward", "tokens", "finished"),
        *("metrics/format", "metrics/steps", "labels/right", "labels/wrong"),
    ]
    assert figures["tokens"] == mean_estimate([5.0, 8.0, 2.0])
    assert figures["finished"] == mean_estimate([1.0, 0.5, 0.5])
    assert figures["metrics/format"] == proportion_estimate(1, 2)  # over the rows that have it
    assert figures["metrics/steps"] == mean_estimate([3.0])
    assert figures["labels/right"] == mean_estimate([0.5, 0.0, 0.0])
    assert figures["labels/wrong"] == mean_estimate([0.5, 0.5, 1.0])


def test_metrics_of_a_split() -> None:
    labels = ["right", "wrong", "wrong", ""]
    samples = [sample(0.1 * i, i == 0, "hard", i, label=label) for i, label in enumerate(labels)]
    evaluated = SplitEvaluation("hard", samples)
    passed, reward, tokens = proportion_estimate(1, 4), evaluated.figures["reward"], evaluated.figures["tokens"]
    finished = proportion_estimate(4, 4)
    expected = {"eval/hard/labels/right": 0.25, "eval/hard/labels/wrong": 0.5}
    for name, figure in (("pass@1", passed), ("reward", reward), ("tokens", tokens), ("finished", finished)):
        expected |= {
            f"eval/hard/{name}/mean": figure.mean,
            f"eval/hard/{name}/ci95_low": figure.low,
            f"eval/hard/{name}/ci95_high": figure.high,
        }
    assert evaluated.metrics() == expected


def test_a_mean_does_not_depend_on_the_order_of_answers() -> None:
    """Else rounding would tell two models apart that got the same rewards, and call it a flip."""
    one = split("s", [(0.1, False), (0.2, False), (0.3, False)])
    other = split("s", [(0.3, False), (0.2, False), (0.1, False)])
    assert one.rewards == other.rewards
    values = ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    kept = [SplitEvaluation("s", [sample(metrics={"m": value}) for value in each]) for each in values]
    assert kept[0].figures["metrics/m"] == kept[1].figures["metrics/m"]


def test_the_average_is_over_splits_not_samples() -> None:
    a, b = split("a", [(0.2, True)]), split("b", *([(0.1 + 0.6 * (i == 2), i == 2)] for i in range(4)))
    evaluation = Evaluation(5, [a, b], seconds=2.5)
    metrics = evaluation.metrics()
    assert metrics["eval/a/pass@1/mean"] == 1.0
    assert metrics["eval/b/pass@1/mean"] == 0.25
    assert metrics["eval/average/pass@1/mean"] == 0.625
    assert metrics["eval/average/reward/mean"] == pytest.approx((0.2 + 0.25) / 2)
    assert evaluation.average["pass@1"] == average([proportion_estimate(1, 1), proportion_estimate(1, 4)])
    assert metrics["time/evaluate"] == 2.5
    assert metrics.items() >= a.metrics().items() | b.metrics().items()


def test_the_average_of_one_split_is_that_split() -> None:
    only = split("s", *[[(0.0, False)]] * 20, pass_k=(1,))
    assert Evaluation(0, [only], 0.0).average == {name: only.figures[name] for name in ("pass@1", "reward")}


@pytest.mark.parametrize(("by_task", "mean"), [(True, 0.5), (False, 0.75)])
def test_the_best_model_is_chosen_by_passes_or_by_reward(by_task, mean) -> None:
    """Where no task says what is right, few answers may reach the highest reward."""
    rows = [[(1.0, True)], [(0.5, False)]]
    evaluation = Evaluation(0, [split(name, *rows, by_task=by_task) for name in "ab"], 0.0)
    assert evaluation.mean == mean


def test_a_record_keeps_figures_and_every_sample() -> None:
    samples = [
        sample(0.5, True, label="half", target={"n": 1}, correct=None, metrics={"format": 1.0}),
        sample(0.25, sample=1, finished=False),
    ]
    evaluated = SplitEvaluation("s", samples)
    record = evaluated.record(3)
    usual = {"split": "s", "index": 0, "prompt": "p", "output": "o", "tokens": 5}
    assert record == {
        "split": "s",
        "iteration": 3,
        "metrics": evaluated.metrics(),
        "samples": [
            usual
            | {"sample": 0, "target": {"n": 1}, "reward": 0.5, "label": "half", "correct": None, "passed": True}
            | {"finished": True, "metrics": {"format": 1.0}},
            usual
            | {"sample": 1, "target": "t", "reward": 0.25, "label": "", "correct": False, "passed": False}
            | {"finished": False},
        ],
    }
    assert fmean(row["reward"] for row in record["samples"]) == record["metrics"]["eval/s/reward/mean"]
    json.dumps(record)

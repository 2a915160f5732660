"""Figures of an evaluation: estimates, their intervals, and the names they are logged under."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.engine import Completion
from esplug.evaluation import (
    Evaluation,
    Sample,
    SplitEvaluation,
    mean_estimate,
    paired_difference,
    proportion_estimate,
    sample_of,
)
from esplug.hookspecs import Reward

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50)


def split(name: str, *graded: tuple[float, bool | None], tokens: int = 5, label: str = "") -> SplitEvaluation:
    samples = [Sample(name, "p", "t", "o", reward, label, correct, tokens) for reward, correct in graded]
    return SplitEvaluation(name, samples)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # the first four are Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (50, 100, 0.4038, 0.5962),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(successes, n, low, high) -> None:
    estimate = proportion_estimate(successes, n)
    assert estimate.mean == successes / n
    assert estimate.n == n
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_its_equation(case) -> None:
    successes, n = case
    estimate = proportion_estimate(successes, n)
    rounding = 1e-12
    assert 0 <= estimate.low <= estimate.mean + rounding
    assert estimate.mean - rounding <= estimate.high <= 1
    for bound in (estimate.low, estimate.high):
        if 0 < bound < 1 and 0 < successes < n:  # (p - bound)^2 = z^2 bound (1 - bound) / n
            assert (estimate.mean - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, rel=1e-5)
    mirror = proportion_estimate(n - successes, n)
    assert (1 - mirror.high, 1 - mirror.low) == pytest.approx((estimate.low, estimate.high), abs=1e-12)


@given(values)
def test_mean_interval_is_the_normal_one(sample) -> None:
    estimate = mean_estimate(sample)
    half = 1.959964 * statistics.stdev(sample) / math.sqrt(len(sample))
    assert estimate.mean == pytest.approx(statistics.fmean(sample), abs=1e-9)
    assert estimate.high - estimate.mean == pytest.approx(half, rel=1e-6, abs=1e-9)
    assert estimate.mean - estimate.low == pytest.approx(half, rel=1e-6, abs=1e-9)
    assert estimate.n == len(sample)


def test_a_single_value_has_no_spread() -> None:
    estimate = mean_estimate([0.25])
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.25, 0.25, 0.25, 1)


def test_an_estimate_reads_as_mean_and_interval() -> None:
    assert str(proportion_estimate(50, 100)) == "0.5000 [0.4038, 0.5962]"


@given(values, st.floats(-10, 10))
def test_the_same_change_everywhere_is_certain(before, change) -> None:
    estimate = paired_difference(before, [value + change for value in before])
    assert estimate.mean == pytest.approx(change, abs=1e-9)
    assert estimate.high - estimate.low < 1e-9


def test_paired_difference() -> None:
    estimate = paired_difference([0, 1, 0, 1], [1, 1, 1, 1])  # differences 1, 0, 1, 0
    half = 1.959964 * math.sqrt(1 / 3) / 2
    assert estimate.mean == 0.5
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)


def test_paired_difference_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])


def test_pass_at_1_is_the_share_of_correct_answers() -> None:
    evaluated = split("s", (1.1, True), (0.1, False), (0.06, False), (1.0, True))
    assert evaluated.passes == [1.0, 0.0, 0.0, 1.0]
    assert evaluated.pass_at_1 == proportion_estimate(2, 4)
    assert evaluated.reward == mean_estimate([1.1, 0.1, 0.06, 1.0])


def test_pass_at_1_is_the_reward_where_the_task_knows_no_correct() -> None:
    assert split("s", (0.5, None), (0.0, None)).pass_at_1 == mean_estimate([0.5, 0.0])
    zero_one = split("s", (1.0, None), (0.0, None), (1.0, None))
    assert zero_one.pass_at_1 == proportion_estimate(2, 3)


def test_an_answer_that_could_not_be_graded_did_not_pass() -> None:
    assert split("s", (1.1, True), (0.1, False), (0.0, None)).passes == [1.0, 0.0, 0.0]


def test_metrics_of_a_split() -> None:
    evaluated = SplitEvaluation(
        "hard",
        [
            Sample("hard", "p", "t", "o", 1.0, "right", True, 4),
            Sample("hard", "p", "t", "o", 0.1, "wrong", False, 8),
            Sample("hard", "p", "t", "o", 0.1, "wrong", False, 6),
            Sample("hard", "p", "t", "o", 0.0, "", False, 6),
        ],
    )
    metrics = evaluated.metrics()
    passed, reward = proportion_estimate(1, 4), mean_estimate([1.0, 0.1, 0.1, 0.0])
    assert metrics == {
        "eval/hard/pass@1/mean": 0.25,
        "eval/hard/pass@1/ci95_low": passed.low,
        "eval/hard/pass@1/ci95_high": passed.high,
        "eval/hard/reward/mean": reward.mean,
        "eval/hard/reward/ci95_low": reward.low,
        "eval/hard/reward/ci95_high": reward.high,
        "eval/hard/tokens/mean": 6.0,
        "eval/hard/labels/right": 0.25,
        "eval/hard/labels/wrong": 0.5,
    }


def test_metrics_of_an_evaluation_average_over_splits_not_samples() -> None:
    evaluation = Evaluation(
        5, [split("a", (0.2, True)), split("b", (0.1, False), (0.1, False), (0.7, True), (0.1, False))], seconds=2.5
    )
    metrics = evaluation.metrics()
    assert metrics["eval/a/pass@1/mean"] == 1.0
    assert metrics["eval/b/pass@1/mean"] == 0.25
    assert metrics["eval/average/pass@1/mean"] == evaluation.mean == 0.625
    assert metrics["eval/average/reward/mean"] == pytest.approx((0.2 + 0.25) / 2)
    assert metrics["time/evaluate"] == 2.5


def test_a_sample_joins_answer_and_grade_and_is_recorded() -> None:
    completion, reward = Completion("out", 7, finished=True), Reward(0.5, "half", True, {"format": 1.0})
    sample = sample_of("s", "prompt", {"n": 1}, completion, reward)
    expected = {
        "split": "s",
        "prompt": "prompt",
        "target": {"n": 1},
        "output": "out",
        "reward": 0.5,
        "label": "half",
        "correct": True,
        "tokens": 7,
    }
    assert sample.row() == expected
    evaluated = SplitEvaluation("s", [sample])
    record = evaluated.record(3)
    assert record == {"split": "s", "iteration": 3, "metrics": evaluated.metrics(), "samples": [expected]}

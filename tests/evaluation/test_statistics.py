"""Estimates and their intervals, against enumeration, exact coverage and published tables."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.evaluation import statistics as estimates
from esplug.evaluation.statistics import (
    Estimate,
    average,
    compare,
    estimate,
    mean_estimate,
    paired_difference,
    pass_at_k,
    proportion_estimate,
)

NARROW = 1e-9  # wider than any rounding
values = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)
flags = st.lists(st.booleans().map(float), min_size=1, max_size=60)
paired_flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80)
few = settings(max_examples=40, deadline=None)


def width(interval: Estimate) -> float:
    return interval.high - interval.low


# --- pass@k ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_choices_with_a_right_answer(n) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations(range(n), k))
        lucky = sum(any(answer < correct for answer in choice) for choice in choices)
        assert pass_at_k(n, correct, k) == pytest.approx(lucky / len(choices), abs=1e-15)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_pass_at_k_is_unbiased(n, k, p) -> None:
    k = min(k, n)
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = math.fsum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


@given(st.integers(2, 10_000).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n - 1))))
@few
def test_pass_at_k_of_many_answers(case) -> None:
    n, correct, k = case
    assert pass_at_k(n, 0, k) == 0
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    assert pass_at_k(n, correct, n) == 1
    assert 0 <= pass_at_k(n, correct - 1, k) <= pass_at_k(n, correct, k) <= pass_at_k(n, correct, k + 1) <= 1


# --- proportions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # the first four are Newcombe (1998), Statistics in Medicine 17, pp. 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (50, 100, 0.4038, 0.5962),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval(successes, n, low, high) -> None:
    interval = proportion_estimate(successes, n)
    assert interval.mean == successes / n
    assert interval.n == n
    assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_its_equation(case) -> None:
    successes, n = case
    interval = proportion_estimate(successes, n)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert width(interval) > 0
    for bound in (interval.low, interval.high):
        if 0 < bound < 1 and 0 < successes < n:  # (p - bound)^2 = z^2 bound (1 - bound) / n
            assert (interval.mean - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, rel=1e-5)
    mirror = proportion_estimate(n - successes, n)
    assert (1 - mirror.high, 1 - mirror.low) == pytest.approx((interval.low, interval.high), abs=1e-12)


@pytest.mark.parametrize(("n", "p"), [(20, 0.5), (50, 0.3), (200, 0.1)])
def test_wilson_interval_covers_as_often_as_it_says(n, p) -> None:
    inside = [c for c in range(n + 1) if (e := proportion_estimate(c, n)).low <= p <= e.high]
    coverage = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in inside)
    assert 0.93 < coverage < 0.97


@given(flags)
def test_zeros_and_ones_are_a_proportion(sample) -> None:
    assert estimate(sample) == proportion_estimate(int(sum(sample)), len(sample))


@pytest.mark.parametrize("sample", [[0.0, 1.0, 0.5], [0.0, -1.0], [2.0, 1.0]])
def test_anything_else_is_a_mean(sample) -> None:
    assert estimate(sample) == mean_estimate(sample)
    assert estimate(sample) != proportion_estimate(1, len(sample))


def test_an_estimate_reads_as_mean_and_interval() -> None:
    assert str(proportion_estimate(50, 100)) == "0.5000 [0.4038, 0.5962]"


# --- means -----------------------------------------------------------------------------------------------


@given(values)
@few
def test_bootstrap_interval(sample) -> None:
    interval = mean_estimate(sample)
    assert interval == mean_estimate(list(sample))  # whatever was drawn elsewhere
    assert interval.mean == pytest.approx(statistics.fmean(sample), abs=NARROW)
    assert interval.n == len(sample)
    assert min(sample) - NARROW <= interval.low <= interval.mean <= interval.high <= max(sample) + NARROW
    if len(sample) > 1 and max(sample) - min(sample) > 1e-3:
        assert width(interval) > 0


@given(values, st.floats(-100, 100), st.floats(0.125, 8))
@few
def test_bootstrap_interval_moves_and_scales_with_its_data(sample, shift, scale) -> None:
    plain, moved = mean_estimate(sample), mean_estimate([scale * value + shift for value in sample])
    expected = tuple(scale * bound + shift for bound in (plain.mean, plain.low, plain.high))
    assert (moved.mean, moved.low, moved.high) == pytest.approx(expected, abs=1e-8)


def test_bootstrap_interval_is_close_to_the_normal_one_and_shrinks_with_n() -> None:
    sample = np.random.default_rng(0).normal(size=100).tolist()
    for copies in (1, 4, 16):
        half = 1.96 * statistics.pstdev(sample) / math.sqrt(100 * copies)
        assert width(mean_estimate(sample * copies)) == pytest.approx(2 * half, rel=0.06)


@pytest.mark.parametrize(("kind", "true"), [("normal", 0.0), ("exponential", 1.0)])
def test_bootstrap_interval_covers_about_as_often_as_it_says(kind, true, monkeypatch) -> None:
    monkeypatch.setattr(estimates, "RESAMPLES", 1000)  # quicker, and about as good
    rng = np.random.default_rng(1)
    intervals = [mean_estimate(getattr(rng, kind)(size=50).tolist()) for _ in range(400)]
    below, above = sum(e.high < true for e in intervals), sum(e.low > true for e in intervals)
    assert 0.90 < 1 - (below + above) / 400 < 0.97
    assert below > 0
    assert above > 0


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_equal_values_have_no_spread(n) -> None:
    interval = mean_estimate([0.1] * n)
    assert interval.low <= interval.mean <= interval.high
    assert (interval.low, interval.high) == pytest.approx((0.1, 0.1))


def test_estimates_weigh_the_same_whatever_their_size() -> None:
    small, large = mean_estimate([0.0, 1.0]), mean_estimate([0.25, 0.5] * 50)
    together = average([small, large])
    assert together.mean == pytest.approx((0.5 + 0.375) / 2)
    assert together.n == 102
    assert average([small, mean_estimate([0.25, 0.5] * 150)]).mean == together.mean
    assert together.low < together.mean < together.high
    # the small one's uncertainty, halved, is nearly all there is
    assert width(together) == pytest.approx(width(small) / 2, rel=0.1)


def test_independent_uncertainties_add_up_as_squares() -> None:
    one = mean_estimate(np.random.default_rng(2).normal(size=200).tolist())
    assert width(average([one] * 4)) == pytest.approx(width(one) / 2)


@pytest.mark.parametrize("n", [1, 12])
def test_splits_all_wrong_stay_uncertain(n) -> None:
    wrong = proportion_estimate(0, n)
    together = average([wrong, wrong])
    assert (together.mean, together.low) == (0.0, 0.0)
    assert together.high == pytest.approx(wrong.high / math.sqrt(2))


def test_the_average_of_proportions_covers_the_truth() -> None:
    rng, truths, sizes = np.random.default_rng(5), (0.1, 0.5, 0.9), (30, 80, 15)
    hits = 0
    for _ in range(1500):
        parts = [proportion_estimate(int(rng.binomial(n, p)), n) for n, p in zip(sizes, truths, strict=True)]
        together = average(parts)
        hits += together.low <= 0.5 <= together.high
    assert 0.93 < hits / 1500 < 0.98


@given(st.lists(values, min_size=1, max_size=4))
@few
def test_the_average_is_the_mean_of_the_means(groups) -> None:
    together = average([mean_estimate(group) for group in groups])
    assert together.mean == pytest.approx(statistics.fmean(map(statistics.fmean, groups)), abs=NARROW)
    assert together.low <= together.mean <= together.high


# --- paired differences ----------------------------------------------------------------------------------


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    """Prompts by outcome, before and after."""
    return [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither, (
        [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
    )


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, pp. 2635-2650, table III, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        # Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33, pp. 2850-2875: airway hyper-responsiveness
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_newcombes_paired_interval(cells, low, high) -> None:
    difference = paired_difference(*pairs(*cells))
    assert difference.mean == pytest.approx((cells[1] - cells[2]) / sum(cells))
    assert difference.n == sum(cells)
    digits = len(str(low).partition(".")[2])
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=0.51 * 10**-digits)


@given(paired_flags)
def test_newcombes_paired_interval_is_antisymmetric_and_within_bounds(outcomes) -> None:
    before, after = ([float(flag) for flag in column] for column in zip(*outcomes, strict=True))
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low), abs=1e-12)
    assert -1 - 1e-12 <= there.low <= there.mean <= there.high <= 1 + 1e-12
    assert width(there) > 0
    assert there.n == len(outcomes)


@given(flags)
def test_no_flips_are_not_certainty(sample) -> None:
    same = paired_difference(sample, sample)
    assert same.mean == 0
    assert same.low < 0 < same.high
    assert same.low == pytest.approx(-same.high)
    assert 0.5 / len(sample) < same.high < 4 / len(sample) ** 0.5


@pytest.mark.parametrize(
    ("chances", "most"),
    [((0.3, 0.2, 0.1, 0.4), 0.98), ((0.1, 0.5, 0.1, 0.3), 0.97), ((0.5, 0.05, 0.05, 0.4), 1)],
    ids=["some flips", "many flips", "few flips"],  # which it takes with care
)
def test_newcombes_paired_interval_covers_as_often_as_it_says(chances, most) -> None:
    n, true, coverage = 24, chances[1] - chances[2], 0.0
    for both, gained, lost in itertools.product(range(n + 1), repeat=3):
        cells = (both, gained, lost, n - both - gained - lost)
        if cells[3] < 0:
            continue
        interval = paired_difference(*pairs(*cells))
        if interval.low <= true <= interval.high:
            ways = math.factorial(n) / math.prod(map(math.factorial, cells))
            coverage += ways * math.prod(p**count for p, count in zip(chances, cells, strict=True))
    assert 0.94 < coverage < most


def test_a_paired_interval_uses_the_pairing() -> None:
    """Ten prompts of a hundred turn right: much surer with no loss than with forty gained and thirty lost."""
    assert width(paired_difference(*pairs(50, 10, 0, 40))) < 0.6 * width(paired_difference(*pairs(20, 40, 30, 10)))


@given(values, st.floats(-10, 10).filter(lambda change: abs(change) > 0.01))
@few
def test_the_same_change_everywhere_is_certain(before, change) -> None:
    if {*before, *(after := [value + change for value in before])} <= {0.0, 1.0}:
        return
    difference = paired_difference(before, after)
    assert difference.mean == pytest.approx(change, abs=NARROW)
    assert width(difference) < 1e-9


def test_other_paired_differences_are_means_of_differences() -> None:
    before, after = [0.1, 0.5, 0.9, 0.3], [0.2, 0.4, 1.0, 0.9]
    assert paired_difference(before, after) == mean_estimate([b - a for a, b in zip(before, after, strict=True)])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@few
def test_a_comparison_says_which_prompts_rose_and_fell(outcomes) -> None:
    before, after = ([count / 4 for count in column] for column in zip(*outcomes, strict=True))
    found = compare(before, after)
    assert found.gained == tuple(i for i, (old, new) in enumerate(outcomes) if new > old)
    assert found.lost == tuple(i for i, (old, new) in enumerate(outcomes) if new < old)
    assert found.difference == paired_difference(before, after)
    back = compare(after, before)
    assert (back.gained, back.lost, back.p_value) == (found.lost, found.gained, found.p_value)


@pytest.mark.parametrize("changed", range(9))
def test_the_sign_test_is_exact(changed) -> None:
    for gained in range(changed + 1):
        lost = changed - gained
        flips = itertools.product((1, -1), repeat=changed)
        as_far = [abs(sum(signs)) >= abs(gained - lost) for signs in flips]
        p_value = compare([0.0] * gained + [1.0] * (lost + 3), [1.0] * gained + [0.0] * lost + [1.0] * 3).p_value
        assert p_value == pytest.approx(sum(as_far) / len(as_far))


def test_the_sign_test_of_very_many_prompts() -> None:
    assert compare([0.0] * 3000, [1.0] * 3000).p_value == 0.0
    assert compare([0.0, 1.0] * 1500, [1.0, 0.0] * 1500).p_value == 1.0


def test_a_comparison_needs_the_same_prompts() -> None:
    for function in (paired_difference, compare):
        with pytest.raises(ValueError, match="shorter"):
            function([1.0, 2.0], [1.0])
        with pytest.raises(ValueError, match="shorter"):
            function([1.0, 0.0], [1.0])

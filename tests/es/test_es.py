"""Members, coefficients and the sigma diagnostic: the mathematics of an iteration."""

import hashlib
import itertools
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.config import make_config
from esplug.es.members import Member, mirrored_correlation, population
from esplug.es.schedules import scheduled
from esplug.es.update import coefficients, momentum_weights, normalized
from esplug.noise import eps

run_seeds = st.integers(0, 2**64 - 2)
iterations = st.integers(0, 10_000)
utilities = st.floats(-1e3, 1e3)


def seeds_of(run_seed: int, iterations: int, size: int, antithetic: bool = False) -> set[int]:
    return {member.seed for i in range(iterations) for member in population(run_seed, i, size, antithetic=antithetic)}


def test_seed_zero_is_seed_zero() -> None:
    hashed = hashlib.blake2b(struct.pack("<QQQ", 0, 0, 0), digest_size=8).digest()
    assert make_config({"seed": 0}).seed == 0
    assert population(0, 0, 2, antithetic=False)[0] == Member(0, int.from_bytes(hashed, "little"), 1)


@given(run_seeds, iterations, st.integers(1, 40))
def test_members_differ_and_do_not_depend_on_the_population_size(run_seed, iteration, size) -> None:
    members = population(run_seed, iteration, size, antithetic=False)
    assert [member.index for member in members] == list(range(size))
    assert {member.sign for member in members} == {1}
    assert len({member.seed for member in members}) == size
    assert population(run_seed, iteration, size + 3, antithetic=False)[:size] == members


@given(run_seeds, iterations, st.integers(1, 20))
def test_antithetic_members_come_in_mirrored_pairs(run_seed, iteration, pairs) -> None:
    members = population(run_seed, iteration, 2 * pairs, antithetic=True)
    plus, minus = members[0::2], members[1::2]
    assert [member.index for member in members] == list(range(2 * pairs))
    assert [member.seed for member in plus] == [member.seed for member in minus]
    assert {member.sign for member in plus} == {1}
    assert {member.sign for member in minus} == {-1}
    # Pair k is the perturbation k, both ways.
    alone = population(run_seed, iteration, pairs, antithetic=False)
    assert [member.seed for member in plus] == [member.seed for member in alone]


@given(run_seeds)
def test_neighbouring_run_seeds_share_no_member(run_seed) -> None:
    ours, theirs = seeds_of(run_seed, 6, 8), seeds_of(run_seed + 1, 6, 8)
    assert len(ours) == len(theirs) == 48  # nor do two iterations of one run
    assert not ours & theirs


@given(st.floats(1e-6, 1), st.lists(utilities, min_size=1, max_size=20))
def test_coefficients_are_the_formula_rounded_to_float32(alpha, values) -> None:
    members = [Member(i, 10 + i, 1 - 2 * (i % 3 == 1)) for i in range(len(values))]
    found = coefficients(alpha, np.array(values), members)
    assert len(found) == len(values)
    for member, value, coefficient in zip(members, values, found, strict=True):
        assert type(coefficient) is float
        assert coefficient == float(np.float32(coefficient))
        exact = alpha * value * member.sign / len(values)
        assert coefficient == pytest.approx(exact, rel=2**-23, abs=1e-44)


def test_a_coefficient_that_float32_cannot_hold_is_rounded() -> None:
    (coefficient,) = coefficients(0.1, np.array([1.0]), [Member(0, 1, 1)])
    assert coefficient == 0.100000001490116119384765625
    assert coefficient != 0.1


@given(st.lists(utilities, min_size=1, max_size=8), st.floats(1e-6, 1))
def test_what_both_of_a_pair_earn_moves_nothing(even, alpha) -> None:
    members = population(3, 1, 2 * len(even), antithetic=True)
    found = coefficients(alpha, np.repeat(even, 2), members)
    assert [plus + minus for plus, minus in zip(found[0::2], found[1::2], strict=True)] == [0.0] * len(even)


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=8))
def test_an_even_part_of_the_reward_leaves_the_update_as_it_is(parts) -> None:
    members = population(3, 1, 2 * len(parts), antithetic=True)
    odd = np.array([sign * odd for odd, _ in parts for sign in (1, -1)], dtype=np.float64)
    even = np.array([even for _, even in parts for _ in range(2)], dtype=np.float64)

    def step(rewards) -> dict[int, float]:
        """Sum the coefficients of each perturbation."""
        total: dict[int, float] = {}
        for member, coefficient in zip(members, coefficients(2.0 * len(members), rewards, members), strict=True):
            total[member.seed] = total.get(member.seed, 0.0) + coefficient
        return total

    assert step(odd + even) == step(odd)
    assert list(step(odd).values()) == [4.0 * odd for odd, _ in parts]


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(1e-6, 1), st.floats(1e-6, 1), st.floats(0, 1))
def test_a_schedule_stays_between_its_ends(schedule, start, end, done) -> None:
    assert scheduled(schedule, start, end, 0) == start
    assert scheduled(schedule, start, end, 1) == pytest.approx(start if schedule == "constant" else end)
    assert min(start, end) * (1 - 1e-12) <= scheduled(schedule, start, end, done) <= max(start, end) * (1 + 1e-12)
    assert scheduled(schedule, start, start, done) == start


def test_a_cosine_is_slow_at_both_ends() -> None:
    assert [scheduled("cosine", 1, 0, share) for share in (0.25, 0.5, 0.75)] == pytest.approx(
        [0.853553, 0.5, 0.146447], abs=1e-6
    )


@given(st.floats(0.01, 0.99))
def test_momentum_forgets_what_counts_less_than_a_hundredth(momentum) -> None:
    weights = momentum_weights(momentum)
    assert weights == pytest.approx([momentum**age for age in range(len(weights))])
    assert weights[0] == 1
    assert all(after == before * momentum for before, after in itertools.pairwise(weights))
    assert weights[-1] >= 0.01 > weights[-1] * momentum


@pytest.mark.parametrize(("momentum", "count"), [(0.0, 1), (0.1, 3), (0.5, 7), (0.9, 44), (0.99, 459)])
def test_momentum_remembers_so_many_iterations(momentum, count) -> None:
    assert len(momentum_weights(momentum)) == count


def mirrored(plus, minus):
    """Rewards float64[2K, 2], whose means over the two prompts are the given ones."""
    means = np.array([value for pair in zip(plus, minus, strict=True) for value in pair], dtype=np.float64)
    return np.stack([means - 1, means + 1], axis=1)


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        ([1, 2, 3], [-1, -2, -3], -1),  # linear within sigma
        ([1, 2, 5], [1, 2, 5], 1),  # nothing but curvature
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 0, -1, 0], [0, 1, 0, -1], 0),
    ],
)
def test_mirrored_correlation(plus, minus, expected) -> None:
    assert mirrored_correlation(mirrored(plus, minus)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("plus", "minus"),
    [([1, 2], [2, 1]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([0, 0, 0], [0, 0, 0])],
    ids=["two pairs", "plus side constant", "minus side constant", "all equal"],
)
def test_mirrored_correlation_is_undefined(plus, minus) -> None:
    assert math.isnan(mirrored_correlation(mirrored(plus, minus)))


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=10), st.integers(1, 9))
def test_mirrored_correlation_is_bounded_and_ignores_scale(pairs, factor) -> None:
    plus, minus = zip(*pairs, strict=True)
    rewards = mirrored(plus, minus)
    found = mirrored_correlation(rewards)
    if len(set(plus)) == 1 or len(set(minus)) == 1:
        assert math.isnan(found)
        return
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert mirrored_correlation(factor * rewards + 7) == pytest.approx(found, abs=1e-9)


finite = st.floats(-1e300, 1e300, allow_nan=False)


@given(st.lists(finite, min_size=1, max_size=20))
def test_normalized_utilities_have_root_mean_square_one_and_keep_their_proportions(values) -> None:
    utilities = np.array(values)
    found = normalized(utilities)
    if not utilities.any():
        assert found.tolist() == values
        return
    assert np.sqrt(np.mean(found**2)) == pytest.approx(1.0, rel=1e-12)
    largest = np.abs(utilities).argmax()
    np.testing.assert_allclose(found / found[largest], utilities / utilities[largest], rtol=1e-12, atol=1e-300)
    assert (np.sign(found) * np.sign(utilities) >= 0).all()


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=12).filter(any), st.integers(-900, 900))
def test_the_scale_of_utilities_does_not_change_normalized_ones(values, power) -> None:
    utilities = np.array(values, dtype=np.float64)
    assert normalized(utilities * 2.0**power).tolist() == normalized(utilities).tolist()


def test_an_update_of_normalized_utilities_has_the_predicted_norm() -> None:
    weights, members, alpha = 20_000, population(5, 0, 8, antithetic=False), 0.01
    utilities = normalized(np.array([3.0, 0.0, -1.0, 7.0, 0.5, 0.0, -4.0, 1.0]))
    update = sum(
        (eps(member.seed, "weight", 0, weights).double() * coefficient)
        for member, coefficient in zip(members, coefficients(alpha, utilities, members), strict=True)
    )
    assert float(update.norm()) == pytest.approx(alpha * math.sqrt(weights / len(members)), rel=0.02)

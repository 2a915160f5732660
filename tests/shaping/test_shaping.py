"""Built-in shapings: known values and invariances."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esplug.plugins import load
from esplug.shaping import Floats

NAMES = ("z-scores", "z-scores-per-prompt", "centered-ranks", "mean-centered")
every_shaping = pytest.mark.parametrize("name", NAMES)
quick = settings(max_examples=60, deadline=None)
# Multiples of 1/8 and whole shifts add up exactly, so that ties stay ties whatever is added.
matrices = arrays(
    np.float64,
    st.tuples(st.integers(2, 12), st.integers(1, 6)),
    elements=st.integers(-800, 800).map(lambda eighths: eighths / 8),
)


@pytest.fixture(scope="module")
def shapes() -> dict[str, Callable[..., Floats]]:
    return {name: load("shaping", name).shape for name in NAMES}


def test_known_values(shapes: dict[str, Callable[..., Floats]]) -> None:
    rewards = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [1.0, 5.0]])
    root = np.sqrt(2.0)
    expected = {
        "z-scores": [-root, 0.0, root, 0.0],
        "z-scores-per-prompt": [-root / 2, 0.0, root / 2, 0.0],
        "centered-ranks": [-0.5, 0.0, 0.5, 0.0],
        "mean-centered": [-0.5, 0.0, 0.5, 0.0],
    }
    for name, utilities in expected.items():
        np.testing.assert_allclose(shapes[name](rewards=rewards), utilities, atol=1e-15)


def test_ranks_ignore_outliers_and_share_ties(shapes: dict[str, Callable[..., Floats]]) -> None:
    rewards = np.array([[1e9], [2.0], [2.0], [2.0], [-7.0]])
    assert shapes["centered-ranks"](rewards=rewards).tolist() == [0.5, 0.0, 0.0, 0.0, -0.5]


@every_shaping
@quick
@given(rewards=matrices)
def test_shape_type_and_mean(shapes: dict[str, Callable[..., Floats]], name: str, rewards: Floats) -> None:
    utilities = shapes[name](rewards=rewards)
    assert utilities.shape == (len(rewards),)
    assert utilities.dtype == np.float64
    assert np.isfinite(utilities).all()
    np.testing.assert_allclose(utilities.mean(), 0.0, atol=1e-9)


@every_shaping
@quick
@given(rewards=matrices, shift=st.integers(-1000, 1000), power=st.integers(-10, 10))
def test_shift_and_scale(
    shapes: dict[str, Callable[..., Floats]], name: str, rewards: Floats, shift: int, power: int
) -> None:
    shape, scale = shapes[name], 2.0**power
    expected = shape(rewards=rewards) * (scale if name == "mean-centered" else 1.0)
    np.testing.assert_allclose(shape(rewards=(rewards + shift) * scale), expected, rtol=1e-6, atol=1e-9)


@every_shaping
@quick
@given(rewards=matrices, shifts=st.lists(st.integers(-1000, 1000), min_size=6, max_size=6))
def test_a_baseline_for_each_prompt_changes_nothing(
    shapes: dict[str, Callable[..., Floats]], name: str, rewards: Floats, shifts: list[int]
) -> None:
    baseline = np.array(shifts[: rewards.shape[1]], dtype=np.float64)
    expected = shapes[name](rewards=rewards)
    np.testing.assert_allclose(shapes[name](rewards=rewards - baseline), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["z-scores", "centered-ranks"])
@quick
@given(rewards=matrices)
def test_leaving_each_member_out_of_its_baseline_changes_nothing(
    shapes: dict[str, Callable[..., Floats]], name: str, rewards: Floats
) -> None:
    deviations = len(rewards) * rewards - rewards.sum(axis=0)  # N - 1 times the reward less the others' mean; exact
    np.testing.assert_allclose(shapes[name](rewards=deviations), shapes[name](rewards=rewards), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["z-scores", "centered-ranks"])
@quick
@given(rewards=matrices, same=st.integers(-100, 100))
def test_prompts_on_which_all_members_agree_change_nothing(
    shapes: dict[str, Callable[..., Floats]], name: str, rewards: Floats, same: int
) -> None:
    # As many prompts again halve all means exactly, so that ties stay ties.
    wider = np.concatenate([rewards, np.full_like(rewards, same)], axis=1)
    np.testing.assert_allclose(shapes[name](rewards=wider), shapes[name](rewards=rewards), rtol=1e-6, atol=1e-9)


@every_shaping
@quick
@given(rewards=matrices, random=st.randoms(use_true_random=False))
def test_members_may_come_in_any_order(
    shapes: dict[str, Callable[..., Floats]], name: str, rewards: Floats, random: np.random.Generator
) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)
    shape = shapes[name]
    np.testing.assert_allclose(shape(rewards=rewards[order]), shape(rewards=rewards)[order], rtol=1e-9, atol=1e-12)


@every_shaping
@quick
@given(
    row=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=8),
    members=st.integers(1, 40),
)
def test_equal_rewards_make_no_update(
    shapes: dict[str, Callable[..., Floats]], name: str, row: list[float], members: int
) -> None:
    assert shapes[name](rewards=np.array([row] * members)).tolist() == [0.0] * members


@pytest.mark.parametrize("name", ["z-scores", "centered-ranks", "mean-centered"])
@quick
@given(row=st.lists(st.floats(-1, 1), min_size=2, max_size=30), random=st.randoms(use_true_random=False))
def test_the_same_rewards_on_other_prompts_tie(
    shapes: dict[str, Callable[..., Floats]], name: str, row: list[float], random: np.random.Generator
) -> None:
    """Float rounding in any order of summation does not make members differ."""
    rows = []
    for _ in range(6):
        random.shuffle(row)
        rows.append(list(row))
    assert not shapes[name](rewards=np.array(rows)).any()


@quick
@given(rewards=matrices)
def test_z_scores_have_unit_variance(shapes: dict[str, Callable[..., Floats]], rewards: Floats) -> None:
    utilities = shapes["z-scores"](rewards=rewards)
    assert not utilities.any() or utilities.std() == pytest.approx(1.0)


@quick
@given(rewards=matrices)
def test_ranks_span_half_to_half_in_order(shapes: dict[str, Callable[..., Floats]], rewards: Floats) -> None:
    utilities, means = shapes["centered-ranks"](rewards=rewards), rewards.mean(axis=1)
    assert np.abs(utilities).max() <= 0.5
    better = means[:, None] > means[None, :] + 1e-9
    assert (utilities[:, None] > utilities[None, :])[better].all()


def test_a_tiny_but_real_difference_counts(shapes: dict[str, Callable[..., Floats]]) -> None:
    rewards = np.array([[1.0], [1.0 + 1e-9]])
    np.testing.assert_allclose(shapes["z-scores"](rewards=rewards), [-1.0, 1.0])

"""The rule of early stopping, against its definition and its properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.es.early_stopping import stall

SCORES = st.lists(st.integers(-50, 50).map(float) | st.just(math.nan), max_size=12)
DELTA = st.integers(0, 20).map(float)


def stops_at(scores: list[float], patience: int, min_delta: float) -> int | None:
    """Return after which score a run stops that asks the rule after each."""
    counts = range(1, len(scores) + 1)
    return next((count for count in counts if stall(scores[:count], min_delta).waited >= patience), None)


@pytest.mark.parametrize(
    ("scores", "min_delta", "best", "waited"),
    [
        ([], 0.0, None, 0),
        ([0.5], 0.0, 0, 0),
        ([0.5, 0.5, 0.5], 0.0, 0, 2),
        ([0.5, 0.6, 0.4], 0.0, 1, 1),
        ([0.1, 0.2, 0.3], 0.5, 0, 2),
        ([0.0, 0.5, 1.0], 0.5, 2, 0),  # an increase of exactly the delta is enough
        ([0.0, 0.25, 0.5], 0.5, 2, 0),  # small steps add up
        ([math.nan, math.nan], 0.0, None, 2),
        ([math.nan, 0.1, math.nan], 0.0, 1, 1),
    ],
)
def test_known_cases(scores, min_delta, best, waited) -> None:
    found = stall(scores, min_delta)
    assert (found.best, found.waited) == (best, waited)


@given(SCORES, st.integers(1, 8), DELTA)
def test_what_comes_later_does_not_matter(scores, patience, min_delta) -> None:
    stop = stops_at(scores, patience, min_delta)
    if stop is not None:
        assert stops_at(scores[:stop], patience, min_delta) == stop
        assert stops_at([*scores[:stop], 1e6], patience, min_delta) == stop


@given(SCORES, st.integers(1, 8), DELTA)
def test_more_patience_never_stops_earlier(scores, patience, min_delta) -> None:
    one, more = stops_at(scores, patience, min_delta), stops_at(scores, patience + 1, min_delta)
    assert more is None or (one is not None and one < more)


@given(SCORES, st.integers(1, 8))
def test_without_a_delta_a_run_stops_once_the_last_scores_do_not_exceed_the_best_before(scores, patience) -> None:
    stop = stops_at(scores, patience, 0.0)
    values = [-math.inf if math.isnan(score) else score for score in scores]
    windows = (count for count in range(patience, len(values) + 1))
    expected = (n for n in windows if max(values[n - patience : n]) <= max(values[: n - patience], default=-math.inf))
    assert stop == next(expected, None)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 3))
def test_scores_that_rise_by_the_delta_never_stop(steps, patience) -> None:
    scores = [0.0]
    for step in steps:
        scores.append(scores[-1] + step)
    assert stops_at(scores, patience, min(map(float, steps), default=0.0)) is None


@given(st.integers(1, 9), st.floats(-1e6, 1e6))
def test_constant_scores_stop_after_the_patience(patience, score) -> None:
    assert stops_at([score] * 12, patience, 0.0) == patience + 1


@given(SCORES, st.integers(1, 8), DELTA, st.integers(-1000, 1000))
def test_a_constant_added_to_all_scores_changes_nothing(scores, patience, min_delta, constant) -> None:
    shifted = [score + constant for score in scores]
    assert stops_at(shifted, patience, min_delta) == stops_at(scores, patience, min_delta)

"""Sampling on the device, against a plain computation in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.rollout.requests import GREEDY, Sampler
from esplug.rollout.sampling import choose, uniforms

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=600)


def _by_hand(logits: list[float], sampler: Sampler, uniform: float) -> tuple[int, float]:
    """Return the token, and the distance of the uniform number from the nearest other token's."""
    shares = np.exp(np.float64(logits) / sampler.temperature)
    shares /= shares.sum()
    least = next(
        share for share in sorted(shares, reverse=True) if shares[shares >= share].sum() >= sampler.top_p - 1e-12
    )
    shares = np.where(shares >= least, shares, 0)
    running = shares.cumsum() / shares.sum()
    token = int((running <= uniform).sum())
    return token, float(np.abs(running - uniform).min())


@given(LOGITS, st.floats(0.3, 3), st.floats(0, 1, exclude_max=True, width=32))
@settings(deadline=None)
def test_a_token_is_where_the_running_sum_passes_the_number(logits, temperature, uniform) -> None:
    sampler = Sampler(temperature)
    token, _ = choose(torch.tensor([logits]), sampler, torch.tensor([[uniform]]))
    expected, margin = _by_hand(logits, sampler, uniform)
    assert int(token) == expected or margin < 1e-5


@given(st.permutations(range(40)), st.floats(0.05, 0.99), st.floats(0, 1, exclude_max=True, width=32))
@settings(deadline=None)
def test_top_p_keeps_the_most_probable_tokens(order, top_p, uniform) -> None:
    logits = [0.2 * each for each in order]
    sampler = Sampler(1.0, top_p)
    token, _ = choose(torch.tensor([logits]), sampler, torch.tensor([[uniform]]))
    shares = np.exp(np.float64(logits))
    shares /= shares.sum()
    above = shares[shares > shares[int(token)]].sum()
    assert above < top_p + 1e-6  # without this token, the others do not suffice
    expected, margin = _by_hand(logits, sampler, uniform)
    assert int(token) == expected or margin < 1e-5 or abs(above - top_p) < 1e-6


def test_frequencies_are_the_models_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(20_000, 1)
    drawn = torch.from_numpy(uniforms(5, 20_000))[:, None]
    tokens, _ = choose(logits, Sampler(0.5), drawn)
    shares = torch.softmax(logits[0] / 0.5, 0)
    found = torch.bincount(tokens, minlength=4) / 20_000
    assert torch.allclose(found, shares, atol=4 * 0.5 / 20_000**0.5)


def test_the_same_seed_gives_the_same_numbers_whatever_their_count() -> None:
    assert uniforms(2**63 - 1, 10).tolist() == uniforms(2**63 - 1, 30)[:10].tolist()
    assert uniforms(1, 10).tolist() != uniforms(2, 10).tolist()
    numbers = uniforms(3, 10_000)
    assert 0 <= numbers.min() < numbers.max() < 1


@pytest.mark.parametrize("sampler", [GREEDY, Sampler(1.0), Sampler(1.0, 0.5)])
def test_undefined_logits_give_some_token_and_are_told(sampler) -> None:
    broken = [[float("nan"), 1.0], [float("inf"), 1.0], [-float("inf")] * 2]
    tokens, top = choose(torch.tensor(broken), sampler, torch.full((3, 1), 0.999))
    assert all(0 <= token < 2 for token in tokens.tolist())
    assert not torch.isfinite(top).any()


def test_the_largest_number_below_one_stays_within_the_vocabulary() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 990:] = -float("inf")
    tokens, _ = choose(logits, Sampler(1.0), torch.tensor([[1 - 2**-24]]))
    assert int(tokens) == 989

"""Shared prefixes of prompts."""

from hypothesis import given
from hypothesis import strategies as st

from esplug.config import make_config
from esplug.planning.placement import Plan
from esplug.planning.shared_prefix import MIN_PREFIX_TOKENS, common_prefix, sharing_saves_time
from esplug.runs.engines import shares_prefixes

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=4)


@given(st.lists(st.integers(0, 9), max_size=50), PROMPTS)
def test_common_prefix_is_the_longest(common, endings) -> None:
    prompts = [common + ending for ending in endings]
    found = common_prefix(prompts)
    assert all(prompt[: len(found)] == found for prompt in prompts)
    if len(prompts) > 1 and len(common) >= MIN_PREFIX_TOKENS:
        assert len(found) >= len(common)
        assert any(len(prompt) == len(found) for prompt in prompts) or len({p[len(found)] for p in prompts}) > 1
    else:
        assert not found or len(found) >= MIN_PREFIX_TOKENS


def asking(shared: int, own: int) -> list[list[int]]:
    return [[*range(shared), *(1000 + prompt for _ in range(own))] for prompt in range(5)]


def test_sharing_saves_time_for_long_prefixes_and_large_models() -> None:
    few_shot, zero_shot = asking(300, 60), asking(20, 350)
    assert sharing_saves_time(few_shot, 128, weights=1_500_000_000)
    assert sharing_saves_time(few_shot, 128, weights=500_000_000)
    assert not sharing_saves_time(few_shot, 1024, weights=135_000_000)
    assert not sharing_saves_time(zero_shot, 128, weights=70_000_000_000)  # too short to share
    assert not sharing_saves_time(few_shot[:1], 128, weights=7_000_000_000)
    assert sharing_saves_time(asking(64, 300), 512, weights=7_000_000_000)
    assert not sharing_saves_time(asking(64, 300), 512, weights=1_500_000_000)


def test_engines_share_prefixes_where_that_saves_time(tiny_model) -> None:
    def shares(plan: Plan, batches: list[list[list[int]]], **settings) -> bool:
        return shares_prefixes(make_config({"max_tokens": 1}, settings), tiny_model, plan, batches)

    cpu, gpu, batches = Plan(2, "cpu", 0, 1), Plan(1, "cuda", 1, 1), [asking(20, 9), asking(300, 60)]
    assert shares(cpu, batches)
    assert not shares(gpu, batches)  # the model is tiny
    assert shares(gpu, batches, eval_n_samples=2, eval_temperature=1.0)

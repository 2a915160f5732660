"""The rollout loop in real engines: the same answers as vLLM's own path, token by token, on a CPU in float32."""

from dataclasses import replace
from typing import Any

import pytest

from tests.helpers.vllm import release, start_probe

pytestmark = pytest.mark.vllm

HEAD = [(3 + 11 * i) % 250 for i in range(70)]  # shared by some prompts: two whole pages, and some more
PROMPTS = [[5 + (3 * i + j * j) % 200 for j in range(1 + (7 * i) % 90)] for i in range(60)]
SHARED = [HEAD + prompt[:20] for prompt in PROMPTS[:30]] + [HEAD]


@pytest.fixture(scope="module")
def cluster():
    from esplug.engines.cluster import Cluster

    cluster = Cluster(None, "none")
    yield cluster
    cluster.close()


def _engines(model: Any, **settings: Any) -> list[Any]:
    return [start_probe(model, rollout=way, **settings)[0] for way in ("vllm", "device")]


def _release(*engines: Any) -> None:
    for engine in engines:
        release(engine)


def _answers(engine: Any, weights: list[Any], prompts: list[list[int]], sampling: Any) -> list[Any]:
    import ray

    found = ray.get(engine.generate.remote(weights, prompts, list(range(len(prompts))), sampling))
    return [(each.completions, each.undefined) for each in found]


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("qwen2", False), ("qwen3_moe", False)])
def test_greedy_answers_are_vllms(architecture, tied, tiny_models, cluster) -> None:
    from esplug.engines.messages import Sampling, Weights

    vllm, device = _engines(tiny_models(architecture, tied))
    greedy = Sampling(40, return_ids=True)
    some = _answers(vllm, [Weights()], PROMPTS, greedy)[0][0]
    common = sorted({token for answer in some for token in answer.ids[5:]})[::9]
    for weights in (Weights(), Weights(1, 0.02), Weights(2, -0.05)):
        for prompts in (PROMPTS, SHARED, PROMPTS[:1]):
            for sampling in (
                greedy,
                replace(greedy, stop_token_ids=tuple(common)),
                replace(greedy, stop=("e", "9", "k")),
                replace(greedy, max_tokens=1),
                replace(
                    greedy, stop=("\n", "e"), max_tokens=9
                ),  # vLLM's own path answers, because it may strip the first
            ):
                expected = _answers(vllm, [weights], prompts, sampling)
                assert _answers(device, [weights], prompts, sampling) == expected
    ended = _answers(device, [Weights()], PROMPTS, replace(greedy, stop_token_ids=tuple(common)))[0][0]
    assert len({answer.tokens for answer in ended if answer.finished}) > 3
    _release(vllm, device)


def test_answers_come_in_waves_if_the_cache_is_small(tiny_model, cluster) -> None:
    from esplug.engines.messages import Sampling, Weights

    vllm, device = _engines(tiny_model, kv_cache=600_000)
    for sampling in (Sampling(50, return_ids=True), Sampling(50, return_ids=True, stop=("e", "k"))):
        for prompts in (PROMPTS, SHARED, [[*HEAD, *range(250)] * 3 + [i] for i in range(3)]):  # the last fill it alone
            expected = _answers(vllm, [Weights()], prompts, sampling)
            assert _answers(device, [Weights()], prompts, sampling) == expected
    _release(vllm, device)


def test_low_rank_members_answer_in_one_batch(tiny_model, cluster) -> None:
    from esplug.engines.actor import Engine
    from esplug.engines.messages import Sampling, Weights

    vllm, device = _engines(tiny_model, kind=Engine, low_rank=2, members_at_once=3)
    members = [Weights(seed, 0.5) for seed in (1, 2, 3)]
    for prompts in (PROMPTS, SHARED):
        for weights in (members, members[1:2], [Weights()]):
            expected = _answers(vllm, weights, prompts, Sampling(30, return_ids=True))
            assert _answers(device, weights, prompts, Sampling(30, return_ids=True)) == expected


def test_sampled_answers_depend_on_their_seeds_only(tiny_model, cluster) -> None:
    import ray

    from esplug.engines.messages import Sampling, Weights

    device, _ = start_probe(tiny_model, rollout="device")
    sampling = Sampling(30, 1.0, 0.9, return_ids=True)

    def answered(order: list[int], seeds: list[int]) -> dict[int, Any]:
        prompts = [PROMPTS[i] for i in order]
        (found,) = ray.get(device.generate.remote([Weights()], prompts, [seeds[i] for i in order], sampling))
        return dict(zip(order, found.completions, strict=True))

    seeds = [2**62 + i for i in range(60)]
    once = answered(list(range(60)), seeds)
    assert answered(list(range(59, -1, -1)), seeds) == once
    other = answered(list(range(60)), [seed + 1000 for seed in seeds])
    assert sum(other[i] != once[i] for i in range(60)) > 55
    _release(device)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_undefined_logits_are_counted_and_leave_no_trace(temperature, tiny_model, cluster) -> None:
    from esplug.engines.messages import Sampling, Weights

    device, _ = start_probe(tiny_model, "float16", rollout="device")
    sampling = Sampling(8, temperature, return_ids=True)
    before = _answers(device, [Weights()], PROMPTS, sampling)
    for scale in (10.0, 1e5):  # activations overflow, and then weights
        ((_, undefined),) = _answers(device, [Weights(1, scale)], PROMPTS, sampling)
        assert 0 < undefined <= 8 * len(PROMPTS)
        assert _answers(device, [Weights()], PROMPTS, sampling) == before
    release(device)


def test_tensor_parallel_ranks_decode_alike(tiny_models, cluster) -> None:
    from esplug.engines.messages import Sampling, Weights

    vllm, device = _engines(tiny_models("qwen2", False), ranks=2)
    sampling = Sampling(20, return_ids=True, stop=("e", "k"))
    for weights in (Weights(), Weights(1, 0.02)):
        assert _answers(device, [weights], PROMPTS, sampling) == _answers(vllm, [weights], PROMPTS, sampling)

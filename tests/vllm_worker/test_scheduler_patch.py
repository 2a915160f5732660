"""Patched scheduler: the same steps, blocks and answers as vLLM's own, also with preemptions."""

import os
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.vllm

BLOCK, EOS, STOPS = 4, 2, (12, 16, 22)
#: For each request: the prompt's length, ``max_tokens``, and whether vLLM detokenizes.
REQUESTS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20), st.booleans()), min_size=1, max_size=8)


def make_scheduler(model: str, ahead: bool, n_blocks: int, caching: bool) -> Any:
    """Create a scheduler without a model, asynchronous if ``ahead``."""
    import torch
    from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    limits = {"max_num_seqs": 6, "max_num_batched_tokens": 16, "max_model_len": 64, "is_encoder_decoder": False}
    with mock.patch.dict(os.environ):  # vLLM sets variables that later engines would inherit
        config = VllmConfig(
            model_config=ModelConfig(model=model, dtype="float32", max_model_len=64),
            cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=caching),
            scheduler_config=SchedulerConfig(**limits, async_scheduling=ahead),
            device_config=DeviceConfig(device="cpu"),
        )
    config.cache_config.num_gpu_blocks = n_blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32)
    cache = KVCacheConfig(n_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)])
    kind = AsyncScheduler if ahead else Scheduler
    return kind(config, cache, StructuredOutputManager(config), block_size=BLOCK)


def token(name: str, position: int) -> int:
    """Return the model's token at a position; sometimes EOS."""
    return EOS if hash((int(name), position)) % 17 == 0 else 10 + (7 * int(name) + 3 * position) % 50


def generated(scheduler: Any, requests: Any, ahead: bool, stops: bool) -> tuple[list[Any], dict[str, list[int]], int]:
    """Answer all requests. With ``stops``, vLLM itself stops them at some tokens.

    Returns the steps, the answers, and the number of outputs.
    """
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hasher = get_request_block_hasher(BLOCK, sha256)
    for name, (length, most, as_they_come) in enumerate(requests):
        sampling = SamplingParams(temperature=0, max_tokens=most, detokenize=as_they_come)
        sampling.stop_token_ids = list(STOPS) if stops or as_they_come else []
        sampling.update_from_generation_config({}, EOS)
        prompt = [100 + (name * j) % 150 for j in range(length)]
        scheduler.add_request(Request(str(name), prompt, sampling, None, arrival_time=name, block_hasher=hasher))
    steps, answers, handed, underway = [], {str(name): [] for name in range(len(requests))}, 0, []
    made: dict[str, int] = {}  # tokens that the model has made
    known: dict[str, int] = {}  # of an answer with its prompt
    for _ in range(2000):
        if scheduler.has_requests():
            step = scheduler.schedule()
            for new in step.scheduled_new_reqs:
                known[new.req_id] = new.num_computed_tokens
            cached = step.scheduled_cached_reqs
            known.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            steps.append((step.num_scheduled_tokens, cached.req_ids, cached.new_block_ids, cached.num_computed_tokens))
            steps[-1] += ([(new.req_id, new.block_ids) for new in step.scheduled_new_reqs], step.finished_req_ids)
            names, tokens = list(step.num_scheduled_tokens), []
            for name in names:
                ends_at = known[name] + step.num_scheduled_tokens[name]
                complete = ends_at >= requests[int(name)][0] + made.get(name, 0)
                tokens.append([token(name, ends_at)] if complete else [])
                made[name] = made.get(name, 0) + complete
            if names:
                underway.append((step, names, tokens))
        if not underway:
            return steps, answers, handed
        if ahead and len(underway) < 2 and scheduler.has_requests() and names:
            continue
        step, names, tokens = underway.pop(0)
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index=dict(zip(names, count())),
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        for each in scheduler.update_from_output(step, output).values():
            for answer in each.outputs:
                answers[answer.request_id] += answer.new_token_ids
                handed += 1
    raise AssertionError("it does not end")


def test_a_scheduler_without_these_names_is_not_patched() -> None:
    from esplug.vllm_worker.scheduler_patch import SchedulerPatch

    other = SimpleNamespace(kv_cache_manager=SimpleNamespace())
    patch = SchedulerPatch(other)
    assert (patch.whole_answers, patch.whole_blocks, vars(other.kv_cache_manager)) == (False, False, {})


@pytest.mark.parametrize("ahead", [False, True])
@given(requests=REQUESTS, n_blocks=st.integers(12, 40), caching=st.booleans())
@settings(max_examples=60, deadline=None)
def test_steps_blocks_and_answers_stay_the_same(tiny_model, ahead, requests, n_blocks, caching) -> None:
    from esplug.vllm_worker.scheduler_patch import SchedulerPatch

    plain, light = (make_scheduler(str(tiny_model), ahead, n_blocks, caching) for _ in range(2))
    patch = SchedulerPatch(light)
    assert (patch.whole_answers, patch.whole_blocks) == (True, not caching)
    patch.stops = SimpleNamespace(complete=lambda _, answer: answer[-1] in STOPS)
    steps, answers, _ = generated(plain, requests, ahead, stops=True)
    light_steps, light_answers, handed = generated(light, requests, ahead, stops=False)
    assert light_answers == answers
    assert light_steps == steps
    assert all(answers.values())
    come = sum(len(answers[str(name)]) for name, request in enumerate(requests) if request[2])
    assert handed == come + sum(not request[2] for request in requests)


def test_a_real_engine_gives_the_same_answers_in_one_output_each(tiny_model) -> None:
    import ray

    from esplug.engines.actor import Engine
    from esplug.engines.cluster import Cluster
    from esplug.engines.messages import Sampling, Weights
    from tests.helpers.vllm import start_probe

    class Plain(Engine):
        light_bookkeeping = False

        def handed_over(self, *arguments: Any) -> tuple[list[Any], int]:
            """Answer, and count the outputs of vLLM's scheduler."""
            processor, counts = self._llm.llm_engine.output_processor, []
            process = processor.process_outputs
            processor.process_outputs = lambda outputs, **named: (
                counts.append(len(outputs)),
                process(outputs, **named),
            )[1]
            try:
                return self.generate(*arguments)[0].completions, sum(counts)
            finally:
                del processor.process_outputs

        def lighten(self) -> bool:
            from esplug.engines.vllm_answers import VLLMAnswers
            from esplug.vllm_worker.scheduler_patch import SchedulerPatch, scheduler_of

            patch = SchedulerPatch(scheduler_of(self._llm))
            self._answering = VLLMAnswers(self._llm, self._heartbeat, patch, share_prefix=False)
            return patch.whole_answers and patch.whole_blocks

    prompts = [[5 + (3 * i + j) % 200 for j in range(i % 9 + 1)] for i in range(40)]
    samplings = (
        Sampling(30),
        Sampling(30, 1.0, stop_token_ids=(9, 60, 111)),
        Sampling(30, 1.0, stop=("e", "9", "k")),
        Sampling(30, 1.0, stop=("\n", "e")),  # vLLM may strip the first, so it stops there itself
    )
    cluster = Cluster(None, "none")
    try:
        engine, _ = start_probe(tiny_model, kind=Plain, prefix_caching=False)

        def answered() -> list[tuple[list[Any], int]]:
            weights, seeds = [Weights(1, 0.02)], list(range(40))
            return ray.get([engine.handed_over.remote(weights, prompts, seeds, each) for each in samplings])

        plain = answered()
        assert ray.get(engine.lighten.remote())
        light = answered()
    finally:
        cluster.close()
    assert [answers for answers, _ in light] == [answers for answers, _ in plain]
    assert all(len({answer.tokens for answer in answers}) > 5 for answers, _ in light[1:])
    assert any(answer.text.endswith("e") and answer.finished for answer in light[2][0])
    assert [handed for _, handed in plain] == [sum(each.tokens for each in answers) for answers, _ in plain]
    assert [handed for _, handed in light] == [40, 40, 40, plain[3][1]]

"""Low-rank members in a real vLLM engine: many in one batch, each as if its weights were dense."""

from typing import Any

import pytest

from tests.helpers.vllm import reference_logprobs, start_probe

pytestmark = pytest.mark.vllm

PROMPTS = [list(range(5, 45)), list(range(60, 80)), list(range(20, 50))]
MODELS = [("llama", True, 1), ("qwen2", False, 3)]
SCALE = 0.5


def vowels(output: str, target: Any) -> float:
    """Return the share of vowels, which is above 0 for a model with random weights."""
    return sum(letter in "aeiou" for letter in output) / max(1, len(output))


def test_a_run_moves_the_model_and_is_replayed_bit_for_bit(tiny_model, tmp_path) -> None:
    from safetensors.torch import load_file

    from esplug import EvolutionStrategiesTrainer
    from esplug.checkpoints.export import export

    questions = [f"Say {i}" for i in range(16)]

    def run(name: str, **settings: Any) -> Any:
        trainer = EvolutionStrategiesTrainer(
            model_name=str(tiny_model),
            reward_function=vowels,
            train_dataloader=[(questions, questions)],
            eval_dataloader_dict={"seen": [(questions, questions)]},
            use_gpus="none",
            logging="none",
            output_directory=str(tmp_path),
            experiment_name=name,
            **{"dtype": "float32", "max_model_len": 128, "max_tokens": 12, "sigma": 0.05, "alpha": 0.1, "rank": 2},
            **{"perturbation": "low-rank", "population_size": 12, "antithetic": True},
            **({"eval_freq": 0} | settings),
        )
        return trainer.fit(tmp_path / name if (tmp_path / name).exists() else None)

    result = run("one", num_iterations=2, n_vllm_engines=1)
    before, after = result.evaluations
    assert [row.output for row in before.splits[0].samples] != [row.output for row in after.splits[0].samples]
    folder = export(result.run_dir, tmp_path / "exported").folder
    assert load_file(folder / "model.safetensors").keys() == load_file(tiny_model / "model.safetensors").keys()
    assert (folder / "model.safetensors").read_bytes() == (result.model / "model.safetensors").read_bytes()
    # Interrupted, then on two engines, with other batches of members and shared mini-batches: the same.
    run("two", num_iterations=1, n_vllm_engines=1, members_per_batch=5, mini_batch_size=7)
    again = run("two", num_iterations=2, n_vllm_engines=2, members_per_batch=5, mini_batch_size=7)
    assert again.checksum == result.checksum


def test_a_model_that_vllm_has_no_adapters_for_is_one_line(tiny_models, tmp_path) -> None:
    from esplug import EvolutionStrategiesTrainer
    from esplug.errors import UserError

    trainer = EvolutionStrategiesTrainer(
        model_name=str(tiny_models("gpt2")),
        reward_function=vowels,
        train_dataloader=[(["a", "b"], ["a", "b"])],
        output_directory=str(tmp_path),
        **{"use_gpus": "none", "perturbation": "low-rank", "population_size": 2, "max_tokens": 4, "max_model_len": 64},
    )
    with pytest.raises(
        UserError, match=r"^--perturbation low-rank: not for this model .*; choose --perturbation full$"
    ):
        trainer.fit()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def cluster():
    from esplug.engines.cluster import Cluster

    cluster = Cluster(None, "none")
    yield cluster
    cluster.close()


def _probe_class():
    from esplug.engines.actor import Engine

    class Probe(Engine):
        def logprobs(self, slots: list[int]) -> list[list[float]]:
            """Return the log-probabilities of prompt number i with the adapter of slot i, all in one batch."""
            from vllm import SamplingParams, TokensPrompt
            from vllm.lora.request import LoRARequest

            self._llm.reset_prefix_cache()
            prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(slots))]
            outputs = self._llm.generate(
                [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
                SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0),
                lora_request=[LoRARequest(f"member {slot}", slot, "x") if slot else None for slot in slots],
                use_tqdm=False,
            )
            return [
                [entry[token].logprob for token, entry in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
                for prompt, output in zip(prompts, outputs, strict=True)
            ]

        def set_members(self, members: list[tuple[int, float]]) -> None:
            self._llm.collective_rpc("es_set_members", args=(members,))

        def poison(self, slot: int) -> None:
            """Make the answers of one member NaN."""

            def put(wrapper: Any) -> None:
                (layer, *_) = getattr(wrapper, "worker", wrapper).get_model().lora_manager.modules.values()
                layer.lora_a_stacked[0][slot - 1] = float("nan")

            self._llm.collective_rpc(put)

        def keep_only(self, tensor: str) -> None:
            """Leave the adapters of one linear layer, and make all others zero."""

            def keep(wrapper: Any) -> None:
                worker = getattr(wrapper, "worker", wrapper)
                for path, layer in worker.get_model().lora_manager.modules.items():
                    names = worker._es_places.parts[f"{path}.base_layer.weight"]
                    for name, factor in zip(names, layer.lora_b_stacked, strict=True):
                        factor.mul_(float(name == tensor))

            self._llm.collective_rpc(keep)

    return Probe


def perturbed(tensors: Any, seed: int, scale: float, rank: int, only: str | None = None) -> Any:
    from esplug.noise import low_rank

    return {
        name: tensor + scale * low_rank.eps(seed, name, tensor.shape, rank)
        if low_rank.is_perturbed(name, tensor.shape) and only in (None, name)
        else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(("architecture", "tied", "rank"), MODELS)
def test_every_linear_layer_of_every_member_is_as_if_dense(cluster, tiny_models, architecture, tied, rank) -> None:
    import numpy as np
    import ray
    from safetensors.torch import load_file

    from esplug.noise.low_rank import is_perturbed

    folder = tiny_models(architecture, tied)
    tensors = load_file(folder / "model.safetensors")
    probe, _ = start_probe(folder, kind=_probe_class(), low_rank=rank, members_at_once=3)
    (base,) = ray.get(probe.logprobs.remote([0]))
    members = [(7, 0.05), (2**64 - 1, -0.05), (7, -0.05)]
    ray.get(probe.set_members.remote(members))
    together = ray.get(probe.logprobs.remote([1, 2, 3, 0, 2]))
    for i, slot in enumerate([1, 2, 3, 0, 2]):
        dense = perturbed(tensors, *members[slot - 1], rank) if slot else tensors
        expected = reference_logprobs(folder, dense, PROMPTS[i % 3])
        np.testing.assert_allclose(together[i], expected, atol=2e-3, err_msg=f"slot {slot}")
    assert np.abs(np.subtract(together[0], base)).max() > 0.02
    linear = [name for name, tensor in tensors.items() if is_perturbed(name, tensor.shape)]
    assert len(linear) == 7 * sum(name.endswith("q_proj.weight") for name in tensors)
    for name in linear:
        ray.get(probe.set_members.remote([(1, SCALE)]))
        ray.get(probe.keep_only.remote(name))
        (alone,) = ray.get(probe.logprobs.remote([1]))
        expected = reference_logprobs(folder, perturbed(tensors, 1, SCALE, rank, only=name), PROMPTS[0])
        np.testing.assert_allclose(alone, expected, atol=2e-3, err_msg=name)
        assert np.abs(np.subtract(expected, base)).max() > 0.01, f"{name}: the change is too small to tell"
    assert ray.get(probe.logprobs.remote([0]))[0] == base
    if architecture == "llama":
        check_a_diverging_member(probe)
    ray.kill(probe)


def check_a_diverging_member(probe: Any) -> None:
    import ray

    from esplug.engines.messages import Sampling, Weights

    weights = [Weights(seed, 0.05) for seed in (1, 2, 3)]
    ask = weights, PROMPTS, [0] * 3, Sampling(8)
    before = ray.get(probe.generate.remote(*ask))
    assert [each.undefined for each in before] == [0, 0, 0]
    ray.get(probe.poison.remote(2))
    spoilt = ray.get(probe.generate.remote(*ask))
    assert [each.undefined > 0 for each in spoilt] == [False, True, False]
    assert [spoilt[i].completions for i in (0, 2)] == [before[i].completions for i in (0, 2)]
    after = ray.get(probe.generate.remote(*ask))  # members are written again, without a trace of the NaN
    assert [each.completions for each in after] == [each.completions for each in before]
    assert [each.undefined for each in after] == [0, 0, 0]


@pytest.mark.soak
def test_tensor_parallel_ranks_hold_their_parts_of_adapters_and_updates(cluster, tiny_model) -> None:
    import numpy as np
    import ray

    from esplug.weights.master import MasterWeights

    folder, rank = tiny_model, 2  # ranks share keys and values
    one = MasterWeights.load(folder, low_rank=rank)
    probe, start = start_probe(folder, ranks=2, kind=_probe_class(), low_rank=rank, members_at_once=3)
    assert start == one.checksum()
    for iteration in range(5):
        seeds, coefficients = [iteration, 7], [0.02, -0.01]
        one.update(seeds, coefficients)
        assert ray.get(probe.update.remote(seeds, coefficients)) == one.checksum()
    members = [(3, 0.05), (4, -0.05)]
    ray.get(probe.set_members.remote(members))
    moved = ray.get(probe.logprobs.remote([1, 2, 0]))
    tensors = dict(one.perturbed(None, 0.0))
    for i, member in enumerate([*members, (0, 0.0)]):
        expected = reference_logprobs(folder, perturbed(tensors, *member, rank), PROMPTS[i])
        np.testing.assert_allclose(moved[i], expected, atol=2e-3)
    ray.kill(probe)


@pytest.mark.parametrize("compiled", [False, True])
def test_adapters_on_a_gpu_compute_what_they_do_on_a_cpu(interpreted, compiled) -> None:
    from types import SimpleNamespace

    import torch
    from vllm.lora.layers import LoRAMapping

    kinds = [
        interpreted("esplug.vllm_worker.adapters_gpu").RowAdapters,
        interpreted("esplug.vllm_worker.adapters_cpu").MaskedAdapters,
    ]
    drawn = torch.Generator().manual_seed(0)
    a = tuple(torch.randn(3, 1, 8, 20, generator=drawn) for _ in range(2))
    b = tuple(torch.randn(3, 1, outputs, 8, generator=drawn) for outputs in (10, 30))
    x, weight = torch.randn(5, 20, generator=drawn), torch.randn(40, 20, generator=drawn)
    results = []
    for kind in kinds:
        wrapper = kind(16, 16, torch.device("cpu"), lora_config=SimpleNamespace(max_loras=3))

        def layer(x: torch.Tensor, wrapper: Any = wrapper) -> torch.Tensor:
            y = torch.nn.functional.linear(x, weight)
            wrapper.add_lora_linear(y, x, a, b, 1.0, (10, 30))
            return torch.relu(y)

        run = torch.compile(layer, fullgraph=True) if compiled else layer
        for rows in ((1, 2, 0, 3, 2), (3, 0, 0, 1, 1)):
            wrapper.update_metadata(LoRAMapping(rows, rows, is_prefill=False), [1, 2, 3], 3, 100)
            results.append(run(x))
    torch.testing.assert_close(results[:2], results[2:])
    assert not torch.equal(results[0], results[1])

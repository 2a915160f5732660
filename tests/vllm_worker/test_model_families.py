"""Model families in a real vLLM engine: answers and log-probabilities are those of transformers, before and after."""

import json

import numpy as np
import pytest

from esplug.vllm_worker.families import DIRECT
from tests.helpers.vllm import reference_answer, reference_logprobs, release, start_probe, written_both_ways

pytestmark = pytest.mark.vllm

#: By architecture: whether esplug writes its weights directly, and whether each of its tensors is changed alone.
FAMILIES = {
    "llama": (True, True),
    "qwen2": (True, True),
    "qwen3": (True, True),
    "gemma": (True, True),
    "mistral": (True, False),
    "gemma2": (True, False),
    "gemma3_text": (True, False),
    "phi3": (True, False),
    "olmo2": (True, False),
    "granite": (True, False),
    "qwen2_moe": (True, True),
    "qwen3_moe": (True, True),
    "mixtral": (True, True),
    "olmoe": (True, False),
    "glm4_moe": (True, False),
    "granitemoe": (False, False),
}
TIED = {"qwen3", "gemma", "gemma2", "gemma3_text"}
ANSWER = 12


@pytest.fixture(scope="module")
def cluster():
    from esplug.engines.cluster import Cluster

    cluster = Cluster(None, "none")
    yield cluster
    cluster.close()


def check(probe, folder, tensors, name: str) -> list[float]:
    import ray

    expected = reference_logprobs(folder, tensors)
    np.testing.assert_allclose(ray.get(probe.logprobs.remote()), expected, atol=2e-3, err_msg=name)
    return expected


@pytest.mark.parametrize("architecture", FAMILIES)
def test_answers_are_those_of_transformers(cluster, tiny_models, architecture) -> None:
    import ray
    import torch
    from safetensors.torch import load_file

    from esplug.engines.messages import Weights
    from esplug.noise.full_rank import eps

    direct, tensor_by_tensor = FAMILIES[architecture]
    folder = tiny_models(architecture, architecture in TIED)
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    assert DIRECT[name] == direct
    tensors = load_file(folder / "model.safetensors")
    probe, _ = start_probe(folder)
    assert (ray.get(probe.kept.remote()) != [0]) == direct
    base = check(probe, folder, tensors, "the base model")
    assert ray.get(probe.answer.remote(ANSWER)) == reference_answer(folder, tensors, ANSWER)

    for name, tensor in tensors.items() if tensor_by_tensor else ():
        generator = torch.Generator().manual_seed(1)
        changed = tensors | {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)}
        assert ray.get(probe.set_tensors.remote(changed))
        moved = check(probe, folder, changed, name)
        if not name.endswith("k_proj.bias"):  # softmax does not feel a shift of all keys (but for rope)
            assert np.abs(np.subtract(moved, base)).max() > 0.01, f"{name}: the change is too small to tell"

    ray.get(probe.update.remote([5, 6], [0.02, -0.01]))
    ray.get(probe.set_weights.remote(Weights()))
    updated = {
        name: tensor
        + sum(scale * eps(seed, name, 0, tensor.numel()) for seed, scale in ((5, 0.02), (6, -0.01))).view_as(tensor)
        for name, tensor in tensors.items()
    }
    check(probe, folder, updated, "after an update")
    assert ray.get(probe.answer.remote(ANSWER)) == reference_answer(folder, updated, ANSWER)
    release(probe)


def test_a_model_that_vllm_reloads_wrongly_is_refused_in_one_line(cluster, tiny_models) -> None:
    import ray

    from esplug.engines import failures
    from esplug.engines.actor import Engine
    from esplug.errors import UserError

    class Broken(Engine):
        worker_extension = "tests.helpers.vllm.UnpackedExperts"

    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        start_probe(tiny_models("qwen2_moe", False), kind=Broken)
    refused = failures.run_error(None, raised.value)
    assert isinstance(refused, UserError)
    assert "the weights of a Qwen2MoeForCausalLM are written anew" in str(refused)
    assert "(model.layers.0.mlp.experts.routed_experts.w13_weight is not as vLLM has loaded it)" in str(refused)
    assert "\n" not in str(refused)


def test_experts_are_reloaded_by_vllm_as_they_are_written_directly(cluster, tiny_models) -> None:
    import ray

    probe, _ = start_probe(tiny_models("qwen2_moe"))
    member, master, again = written_both_ways(probe)
    assert member == again != master
    assert ray.get(probe.fault.remote(False, 1)) == ray.get(probe.fault.remote(False, None)) == ""
    release(probe)


@pytest.mark.soak
def test_tensor_parallel_ranks_hold_their_parts_of_experts(cluster, tiny_models) -> None:
    import ray
    from safetensors.torch import load_file

    from esplug.engines.messages import Weights
    from esplug.weights.master import MasterWeights

    folder = tiny_models("qwen2_moe", False)
    one = MasterWeights.load(folder)
    probe, start = start_probe(folder, ranks=2)
    assert start == one.checksum()
    assert 0 < max(ray.get(probe.kept.remote())) < 0.6 * one.nbytes
    check(probe, folder, load_file(folder / "model.safetensors"), "the base model")
    one.update([5, 6], [0.02, -0.01])
    assert ray.get(probe.update.remote([5, 6], [0.02, -0.01])) == one.checksum()
    ray.get(probe.set_weights.remote(Weights(3, -0.02)))
    check(probe, folder, dict(one.perturbed(3, -0.02)), "a member after an update")
    ray.kill(probe)

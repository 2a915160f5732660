"""Weights in a real vLLM engine: every tensor arrives, restoring the master is exact, ranks agree."""

import pytest

from tests.helpers.vllm import reference_logprobs, release, start_probe, written_both_ways

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def cluster():
    from esplug.engines.cluster import Cluster

    cluster = Cluster(None, "none")
    yield cluster
    cluster.close()


def test_members_leave_no_trace_and_perturb_as_defined(cluster, tiny_models) -> None:
    import numpy as np
    import ray
    import torch
    from safetensors.torch import load_file

    from esplug.engines.messages import Weights
    from esplug.noise.full_rank import eps

    folder = tiny_models("llama", True)
    probe, checksum = start_probe(folder)
    extra, lacking = "model.layers.0.scale", "model.layers.1.self_attn.k_proj.weight"
    refused = ray.get(probe.refusals.remote(extra, lacking))
    assert extra in refused[0]
    assert "layers.1.self_attn.qkv_proj.weight" in refused[1]
    kernels = ray.get(probe.kernels.remote())
    assert {name for name, _ in kernels} == {"RMSNorm", "SiluAndMul"}
    assert max(far for _, far in kernels) < 1e-5
    ray.get(probe.set_weights.remote(Weights()))
    base = ray.get(probe.logprobs.remote())
    for seed in range(5):
        ray.get(probe.set_weights.remote(Weights(seed, 0.02)))
    perturbed = {
        name: tensor + torch.tensor(0.02) * eps(4, name, 0, tensor.numel()).view_as(tensor)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    moved = ray.get(probe.logprobs.remote())
    np.testing.assert_allclose(moved, reference_logprobs(folder, perturbed), atol=2e-3)
    assert np.abs(np.subtract(moved, base)).max() > 0.02
    ray.get(probe.set_weights.remote(Weights()))
    assert ray.get(probe.logprobs.remote()) == base
    assert ray.get(probe.checksum.remote()) == [checksum]

    for _ in range(2):  # the second time through vLLM's loader
        assert "qkv_proj (packed) is not as vLLM has loaded it" in ray.get(probe.fault.remote(True, None))
        assert ray.get(probe.fault.remote(False, 1)) == ray.get(probe.fault.remote(False, None)) == ""
        ray.get(probe.set_weights.remote(Weights(4, 0.02)))
        assert ray.get(probe.logprobs.remote()) == moved
        ray.get(probe.forget_fast_path.remote())
    release(probe)


def test_the_direct_loader_and_reload_agree_in_bfloat16(cluster, tiny_models) -> None:
    """In bfloat16, vLLM makes biases float32 and packs weights differently."""
    import ray

    probe, _ = start_probe(tiny_models("qwen2", False), "bfloat16")
    assert ray.get(probe.kept.remote()) != [0]
    member, master, again = written_both_ways(probe)
    assert member == again != master
    ray.kill(probe)


@pytest.mark.parametrize(
    ("architecture", "tied"),
    [
        pytest.param("qwen2", False, marks=pytest.mark.soak, id="biases"),
        pytest.param("llama", True, id="shared keys, padding"),
    ],
)
def test_tensor_parallel_ranks_hold_the_parts_of_one_model(cluster, tiny_models, tmp_path, architecture, tied) -> None:
    import numpy as np
    import ray

    from esplug.checkpoints.safetensors_shards import read_tensors
    from esplug.engines.messages import Weights
    from esplug.weights.master import MasterWeights

    folder = tiny_models(architecture, tied)
    one = MasterWeights.load(folder)
    probe, start = start_probe(folder, ranks=2)
    assert start == one.checksum()
    kept = ray.get(probe.kept.remote())
    assert 0 < max(kept) < 0.6 * one.nbytes
    for iteration in range(5):
        seeds, coefficients = [iteration, 7], [0.02, -0.01]
        one.update(seeds, coefficients)
        assert ray.get(probe.update.remote(seeds, coefficients)) == one.checksum()
    ray.get(probe.set_weights.remote(Weights(3, -0.02)))
    moved = ray.get(probe.logprobs.remote())
    np.testing.assert_allclose(moved, reference_logprobs(folder, dict(one.perturbed(3, -0.02))), atol=2e-3)
    ray.get(probe.save.remote(str(tmp_path), True))
    saved = dict(read_tensors(tmp_path))
    assert saved.keys() == set(one.names)
    assert all((saved[name] == one[name]).all() for name in saved)
    ray.kill(probe)

"""Engines that evaluate a model as it is: they write no weights, whether the model is quantised or not."""

import pytest

from esplug.engines.messages import Weights
from tests.helpers.vllm import reference_logprobs, start_probe


@pytest.fixture
def cluster():
    from esplug.engines.cluster import Cluster

    cluster = Cluster(None, "none")
    yield cluster
    cluster.close()


@pytest.mark.vllm
def test_an_engine_without_master_weights_keeps_the_models_own(cluster, tiny_model) -> None:
    import ray
    from safetensors.torch import load_file

    probe, checksum = start_probe(tiny_model, writes_weights=False)
    assert checksum == 0
    ray.get(probe.set_weights.remote(Weights()))
    expected = reference_logprobs(tiny_model, load_file(tiny_model / "model.safetensors"))
    assert ray.get(probe.logprobs.remote()) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(Exception, match="to evaluate the model as it is"):
        ray.get(probe.set_weights.remote(Weights(1, 0.1)))
    ray.kill(probe)

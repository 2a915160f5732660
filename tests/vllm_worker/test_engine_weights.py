"""Weights in a real vLLM engine: every tensor arrives, restoring the master is exact, ranks agree."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

PROMPT = list(range(5, 45))
MODELS = [("llama", False), ("qwen2", False), ("qwen3", True), ("gemma", True)]


@pytest.fixture(scope="module")
def cluster():
    from esplug.engines.cluster import Cluster

    cluster = Cluster(None, "none")
    yield cluster
    cluster.close()


def start_probe(model: Path, dtype: str = "float32", ranks: int = 1, kind: type | None = None, **settings: int):
    """Start an engine with test methods, such as log-probabilities of a prompt. Returns it and its checksum."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from esplug.checkpoints.history import CatchUp
    from esplug.engines.messages import EngineSettings

    place = PlacementGroupSchedulingStrategy(placement_group([{"CPU": 0.1}]), 0)  # as in the engine pool
    probe = ray.remote(kind or _probe_class()).options(num_cpus=0.1, scheduling_strategy=place).remote(None)
    settings = EngineSettings(str(model), dtype, "float32", "auto", "cpu", ranks, None, 0.5, **settings)
    return probe, ray.get(probe.start.remote(settings, (0, 1), ranks, 2**26, CatchUp(0))).checksum


def _probe_class():
    from esplug.engines.actor import Engine

    class Probe(Engine):
        def logprobs(self) -> list[float]:
            from vllm import SamplingParams, TokensPrompt

            self._llm.reset_prefix_cache()
            parameters = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
            (output,) = self._llm.generate([TokensPrompt(prompt_token_ids=PROMPT)], parameters, use_tqdm=False)
            pairs = zip(PROMPT[1:], output.prompt_logprobs[1:], strict=True)
            return [entry[token].logprob for token, entry in pairs]

        def set_weights(self, weights) -> None:
            self._llm.collective_rpc("es_set_weights", args=(weights.member_seed, weights.scale))

        def set_tensors(self, tensors) -> bool:
            """Write these tensors. Returns whether the direct loader did it."""

            def put(wrapper) -> bool:
                from esplug.weights.master import MasterWeights

                worker = getattr(wrapper, "worker", wrapper)
                master, worker._es_master = worker._es_master, MasterWeights(tensors.items())
                worker.es_set_weights(None, 0.0)
                worker._es_master = master
                return worker._es_fast_path is not None

            return all(self._llm.collective_rpc(put))

        def forget_fast_path(self, scrambled: bool) -> str:
            """Remove the direct loader; if ``scrambled``, return why one with swapped weights is refused."""

            def forget(wrapper) -> str:
                from esplug.vllm_worker.direct_load import DirectLoader, UnmappedError
                from esplug.weights.master import MasterWeights

                worker = getattr(wrapper, "worker", wrapper)
                worker._es_fast_path, master, reason = None, worker._es_master, "forgotten"
                if scrambled:
                    swap = {"k_proj": "v_proj", "v_proj": "k_proj"}
                    parts = {name: name.split(".") for name in master.names}
                    names = {name: ".".join(swap.get(part, part) for part in parts[name]) for name in parts}
                    other = MasterWeights((names[name], master[name]) for name in master.names)
                    try:
                        DirectLoader(
                            worker.get_model(), other, worker._es_places, worker.model_runner.model_config.dtype
                        )
                    except UnmappedError as error:
                        reason = str(error)
                return reason

            return self._llm.collective_rpc(forget)[0]

        def refusals(self, extra: str, lacking: str) -> list[str]:
            """Return why checkpoints with one tensor more or less cannot be written directly."""

            def refuse(wrapper) -> list[str]:
                from esplug.vllm_worker.direct_load import ParameterMap, UnmappedError

                worker, found = getattr(wrapper, "worker", wrapper), []
                shapes = worker._es_master.shapes
                for other in (shapes | {extra: (3, 4)}, {k: v for k, v in shapes.items() if k != lacking}):
                    try:
                        ParameterMap.find(worker.get_model(), other, 0)
                    except UnmappedError as error:
                        found.append(str(error))
                return found

            return self._llm.collective_rpc(refuse)[0]

        def kernels(self) -> list[tuple[str, float]]:
            """Return which layers use C kernels, and how much their outputs differ from vLLM's."""

            def compare(wrapper) -> list[tuple[str, float]]:
                import torch

                found = []
                for layer in getattr(wrapper, "worker", wrapper).get_model().modules():
                    if "forward" in vars(layer):
                        for width in (64, 72):  # the C kernels do not support 72
                            x, residual = torch.randn(2, 3, width)
                            weighted = hasattr(layer, "weight")
                            if weighted:
                                kept, layer.weight = layer.weight, torch.nn.Parameter(torch.randn(width))
                            cases = [(x,), (x.T.contiguous().T,), *([(x, residual)] if weighted else [])]
                            for arguments in cases:
                                own = layer.forward(*(each.clone() for each in arguments))
                                expected = type(layer).forward(layer, *(each.clone() for each in arguments))
                                pairs = zip(own, expected, strict=True)
                                far = max(float((a - b).abs().max()) for a, b in pairs)
                                found.append((type(layer).__name__, far))
                            if weighted:
                                layer.weight = kept
                return found

            return self._llm.collective_rpc(compare)[0]

        def kept(self) -> list[int]:
            """Return the bytes of master weights on each rank; 0 without the direct loader."""

            def count(wrapper) -> int:
                worker = getattr(wrapper, "worker", wrapper)
                return worker._es_master.nbytes if worker._es_fast_path is not None else 0

            return self._llm.collective_rpc(count)

        def checksum(self) -> list[int]:
            return [sum(each.values()) % 2**64 for each in self._llm.collective_rpc("es_tensor_checksums")]

    return Probe


def reference_logprobs(folder: Path, tensors, prompt: list[int] = PROMPT) -> list[float]:
    """Compute a prompt's log-probabilities with ``transformers`` for the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [float(scores[i, token]) for i, token in enumerate(prompt[1:])]


@pytest.mark.parametrize(("architecture", "tied"), MODELS)
def test_every_tensor_alone_moves_vllm_as_it_moves_transformers(cluster, tiny_models, architecture, tied) -> None:
    import numpy as np
    import ray
    import torch
    from safetensors.torch import load_file

    folder = tiny_models(architecture, tied)
    tensors = load_file(folder / "model.safetensors")
    probe, _ = start_probe(folder)
    base = ray.get(probe.logprobs.remote())
    np.testing.assert_allclose(base, reference_logprobs(folder, tensors), atol=2e-3)
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(1)
        changed = tensors | {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator)}
        assert ray.get(probe.set_tensors.remote(changed))
        moved, expected = ray.get(probe.logprobs.remote()), reference_logprobs(folder, changed)
        np.testing.assert_allclose(moved, expected, atol=2e-3, err_msg=name)
        if not name.endswith("k_proj.bias"):  # softmax does not feel a shift of all keys (but for rope)
            assert np.abs(np.subtract(expected, base)).max() > 0.02, f"{name}: the change is too small to tell"
    ray.kill(probe)


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

    for scrambled, reason in ((False, "forgotten"), (True, "qkv_proj.weight (packed) would not be")):
        ray.get(probe.set_weights.remote(Weights()))
        assert reason in ray.get(probe.forget_fast_path.remote(scrambled))
        ray.get(probe.set_weights.remote(Weights(4, 0.02)))
        assert ray.get(probe.logprobs.remote()) == moved
    ray.kill(probe)


def test_the_direct_loader_and_reload_agree_in_bfloat16(cluster, tiny_models) -> None:
    """In bfloat16, vLLM makes biases float32 and packs weights differently."""
    import ray

    from esplug.engines.messages import Weights

    probe, _ = start_probe(tiny_models("qwen2", False), "bfloat16")
    assert ray.get(probe.kept.remote()) != [0]
    seen = []
    for weights in (Weights(3, 0.05), Weights(), Weights(3, 0.05)):
        ray.get(probe.set_weights.remote(weights))
        seen.append(ray.get(probe.logprobs.remote()))
        if len(seen) == 2:
            ray.get(probe.forget_fast_path.remote(False))
    assert seen[0] == seen[2] != seen[1]
    ray.kill(probe)


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", False), ("llama", True)])  # biases; shared keys, padding
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

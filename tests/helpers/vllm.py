"""Probe engines: real engines with extra methods for tests, and reference log-probabilities."""

from pathlib import Path

from esplug.vllm_worker.extension import ESWorkerExtension, MasterSetup

PROMPT = list(range(5, 45))


#: Probes of one rank that are not in use, by Ray's node. They load another model in 4 s, and a new process in 30 s.
_spare: dict[str, list] = {}


def start_probe(
    model: Path, dtype: str = "float32", ranks: int = 1, kind: type | None = None, kv_cache: int = 2**26, **settings
):
    """Start an engine with extra methods, such as for prompt log-probabilities and arbitrary weights."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from esplug.checkpoints.history import CatchUp
    from esplug.engines.messages import EngineSettings

    spare = _spare.get(ray.get_runtime_context().get_node_id())
    if kind is None and ranks == 1 and spare:
        probe = spare.pop()
        ray.get(probe.forget.remote())
    else:
        place = PlacementGroupSchedulingStrategy(placement_group([{"CPU": 0.1}]), 0)  # as in the engine pool
        probe = ray.remote(kind or _probe_class()).options(num_cpus=0.1, scheduling_strategy=place).remote(None)
    settings = EngineSettings(str(model), dtype, "float32", "auto", "cpu", ranks, None, 0.5, **settings)
    return probe, ray.get(probe.start.remote(settings, (0, 1), ranks, kv_cache, CatchUp(0))).checksum


def release(probe) -> None:
    """Keep a probe of the usual kind, with one rank, for the next test of the module."""
    import ray

    _spare.setdefault(ray.get_runtime_context().get_node_id(), []).append(probe)


def written_both_ways(probe) -> list[list[float]]:
    """Return the log-probabilities of a member and of the master, written directly, and of the member through vLLM."""
    import ray

    from esplug.engines.messages import Weights

    seen = []
    for weights in (Weights(3, 0.05), Weights(), Weights(3, 0.05)):
        ray.get(probe.set_weights.remote(weights))
        seen.append(ray.get(probe.logprobs.remote()))
        if len(seen) == 2:
            ray.get(probe.forget_fast_path.remote())
    return seen


def _probe_class():
    from esplug.engines.actor import Engine

    class Probe(Engine):
        def forget(self) -> None:
            """Give up the model, so that another one can be started in this process."""
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
            from vllm.platforms import current_platform

            # Done once in a process. It looks into all modules, and fails at numba's, which esplug imports later.
            type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
            self._llm = None
            cleanup_dist_env_and_memory()
            self.__init__(None)

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
            """Write these tensors, and return whether that used the fast path."""

            def put(wrapper) -> bool:
                from esplug.weights.master import MasterWeights

                worker = getattr(wrapper, "worker", wrapper)
                master, worker._es_master = worker._es_master, MasterWeights(tensors.items())
                worker.es_set_weights(None, 0.0)
                worker._es_master = master
                return worker._es_fast_path is not None

            return all(self._llm.collective_rpc(put))

        def answer(self, length: int) -> list[int]:
            from vllm import SamplingParams, TokensPrompt

            self._llm.reset_prefix_cache()
            parameters = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
            (output,) = self._llm.generate([TokensPrompt(prompt_token_ids=PROMPT)], parameters, use_tqdm=False)
            return list(output.outputs[0].token_ids)

        def forget_fast_path(self) -> None:
            self._llm.collective_rpc("es_load_without_places", args=(self._master_setup,))

        def fault(self, scrambled: bool, member_seed: int | None) -> str:
            """Write a member or the master, with some tensors swapped or as they are; return what is wrong."""

            def write(wrapper) -> str:
                from esplug.weights.master import MasterWeights

                worker = getattr(wrapper, "worker", wrapper)
                master = worker._es_master
                if scrambled:
                    swap = {"k_proj": "v_proj", "v_proj": "k_proj"}
                    parts = {name: name.split(".") for name in master.names}
                    names = {name: ".".join(swap.get(part, part) for part in parts[name]) for name in parts}
                    worker._es_master = MasterWeights((names[name], master[name]) for name in master.names)
                found = worker.es_write_and_check(member_seed, 0.1)
                worker._es_master = master
                return found

            return self._llm.collective_rpc(write)[0]

        def refusals(self, extra: str, lacking: str) -> list[str]:
            """Return why checkpoints with one tensor more or less cannot use the fast path."""

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
            """Return the layers that use C kernels, and how much their outputs differ from vLLM's."""

            def compare(wrapper) -> list[tuple[str, float]]:
                import torch

                found = []
                for layer in getattr(wrapper, "worker", wrapper).get_model().modules():
                    if "forward" in vars(layer):
                        for width in (64, 72):  # the C kernels do not support the second
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
    """Compute a prompt's log-probabilities with ``transformers`` and these weights."""
    import torch

    with torch.no_grad():
        scores = _reference(folder, tensors)(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [float(scores[i, token]) for i, token in enumerate(prompt[1:])]


def reference_answer(folder: Path, tensors, length: int, prompt: list[int] = PROMPT) -> list[int]:
    """Answer a prompt greedily with ``transformers`` and these weights."""
    import torch

    model, ids = _reference(folder, tensors), list(prompt)
    with torch.no_grad():
        for _ in range(length):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def _reference(folder: Path, tensors):
    """Load tensors under the checkpoint's names, which the model's own may differ from."""
    import shutil
    import tempfile

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / "config.json", place)
        save_file(tensors, Path(place) / "model.safetensors", {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, attn_implementation="eager")


class UnpackedExperts(ESWorkerExtension):
    """Reloads models as vLLM alone does, which leaves experts wrong on a CPU."""

    def _es_choose_loader(self, setup: MasterSetup) -> None:
        self.es_load_without_places(setup)

    def _es_reload(self, tensors) -> None:
        self.model_runner.reload_weights(weights_iterator=tensors)

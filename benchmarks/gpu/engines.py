"""Checks that vLLM computes with the weights written into it, and timings of a switch to another member."""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.gpu.device import GPU, SIGMA, Row, seconds

Result = TypeVar("Result")
PROMPT, ANSWER = list(range(1000, 1040)), 24
MEMBERS = 30 if GPU else 3
#: Largest accepted difference from ``transformers``, as a share of how far a change moves the log-probabilities.
_TOLERANCE = 0.1
_RANK, _SCALE = 2, 5 * SIGMA


def apart(work: Callable[..., Result], *arguments: Any) -> Result:
    """Run work in its own process, which frees the GPU's memory when it ends."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class LocalEngine:
    """An engine in this process. ``share`` is vLLM's share of the GPU's memory; the rest is left for the master.

    A fixed size of the ``cache``, in bytes, lets several engines start on a GPU at the same time.
    """

    def __init__(
        self, model: Path, dtype: str, share: float, cache: int | None = None, plain: bool = False, **settings: Any
    ) -> None:
        os.environ.pop("TRITON_INTERPRET", None)
        from benchmarks.shared.reference import BenchmarkEngine, PlainEngine
        from esplug.checkpoints.history import CatchUp
        from esplug.engines.messages import EngineSettings

        device = "cuda" if GPU else "cpu"
        how = EngineSettings(str(model), dtype, "float32", "auto", device, 1, 1024, share, **settings)
        self.engine = (PlainEngine if plain else BenchmarkEngine)(None)
        self.checksum = self.engine.start(how, (0, 1), None, cache if GPU else 2**26, CatchUp(0)).checksum
        self.llm = self.engine._llm

    def ask(self, work: Callable[[Any], Result]) -> Result:
        """Run work in vLLM's worker and return its result."""
        found: list[Result] = self.llm.collective_rpc(lambda wrapper: work(getattr(wrapper, "worker", wrapper)))
        return found[0]

    def lighten(self) -> None:
        """Patch vLLM's scheduler in an engine that was started ``plain``."""
        from esplug.vllm_worker.scheduler_patch import SchedulerPatch, scheduler_of

        SchedulerPatch(scheduler_of(self.llm))

    def write(self, seed: int | None, scale: float = SIGMA) -> None:
        self.llm.reset_prefix_cache()
        self.llm.collective_rpc("es_set_weights", args=(seed, scale if seed is not None else 0.0))

    def fingerprint(self) -> dict[str, object]:
        """Return a checksum of every parameter of vLLM's model."""
        from esplug.vllm_worker.fingerprint import fingerprint

        found = self.ask(lambda worker: fingerprint(worker.get_model(), worker.model_runner.model_config.dtype))
        return dict(found)

    def graphs(self) -> str:
        """Return vLLM's CUDA graph mode."""
        config = self.llm.llm_engine.vllm_config
        return "none" if config.model_config.enforce_eager else str(config.compilation_config.cudagraph_mode)

    def prompt_logprobs(self, tokens: list[int]) -> torch.Tensor:
        from vllm import SamplingParams, TokensPrompt

        self.llm.reset_prefix_cache()
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
        (output,) = self.llm.generate([TokensPrompt(prompt_token_ids=tokens)], sampling, use_tqdm=False)
        return _logprobs(tokens[1:], output.prompt_logprobs[1:])

    def answers(self, adapters: Sequence[Any] = (None,)) -> list[tuple[list[int], torch.Tensor]]:
        """Return the tokens and log-probabilities of greedy answers, one for each adapter."""
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(max_tokens=ANSWER, logprobs=0, temperature=0, ignore_eos=True)
        prompts = [TokensPrompt(prompt_token_ids=PROMPT)] * len(adapters)
        outputs = self.llm.generate(prompts, sampling, lora_request=list(adapters), use_tqdm=False)
        answers = [output.outputs[0] for output in outputs]
        return [(list(answer.token_ids), _logprobs(answer.token_ids, answer.logprobs)) for answer in answers]


def _logprobs(tokens: Sequence[int], entries: Iterable[Any]) -> torch.Tensor:
    return torch.tensor([entry[token].logprob for token, entry in zip(tokens, entries, strict=True)])


class Dense:
    """The same model in ``transformers``."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._device = "cuda" if GPU else "cpu"
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(self._device).eval()
        self.parameters = dict(self._model.named_parameters())

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, value in tensors:
            if name in self.parameters:
                self.parameters[name].data.copy_(value)

    def logprobs(self, tokens: list[int], first: int) -> torch.Tensor:
        """Return the log-probabilities of the tokens from index ``first`` on."""
        with torch.no_grad():
            logits = self._model(torch.tensor([tokens], device=self._device)).logits[0, first - 1 : -1]
        chosen = torch.tensor(tokens[first:], device=self._device)[:, None]
        return logits.log_softmax(-1).gather(1, chosen)[:, 0].cpu()


def _require(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"vLLM on the GPU: {what}: not the same")


def _error(dense: Dense, tokens: list[int], logprobs: torch.Tensor) -> float:
    """Return how far an answer's log-probabilities are off those of ``transformers``, at most."""
    return float((logprobs - dense.logprobs(PROMPT + tokens, len(PROMPT))).abs().max())


def check(model: Path, tensors: int | None) -> str:
    """Compare an engine with ``transformers`` and with the CPU's kernels. Exits if anything differs.

    Args:
        model: folder of a trained model.
        tensors: number of the checkpoint's tensors to change; ``None`` for all.
    """
    from esplug.weights.master import MasterWeights

    there, here, dense = LocalEngine(model, "float32", 0.3), MasterWeights.load(model, "float32"), Dense(model)
    state = there.fingerprint()
    _require(there.checksum == here.checksum(), "the base model's checksum")
    offset, changes = _check_tensors(there, here, dense, tensors)
    there.write(None)
    _require(there.fingerprint() == state, "the model's weights after restoring them")
    decoded = _check_decoding(there, here, dense, offset)
    there.write(None)
    _require(there.fingerprint() == state, f"the model's weights after {MEMBERS} members")
    sums = there.ask(lambda worker: worker._es_master.checksum())
    _require(sums == there.checksum, f"the master's checksum after {MEMBERS} members")
    seeds, steps = list(range(8)), [1e-4 * (member - 3) for member in range(8)]
    here.update(seeds, steps)
    _require(there.engine.update(seeds, steps) == here.checksum(), "the checksum after an update")
    return (
        f"{model.name}, {changes}; after {MEMBERS} members the same weights bit for bit, members' decoded "
        f"log-probabilities off by {decoded:.2g}; CUDA graphs: {there.graphs()}"
    )


def _check_tensors(there: LocalEngine, here: Any, dense: Dense, tensors: int | None) -> tuple[float, str]:
    """Change tensors one by one in the engine's master and in ``transformers``, and compare log-probabilities.

    Returns:
        how far vLLM's log-probabilities are off with none changed, and a description of the result.
    """
    base = {name: here[name].clone() for name in here.names if name in dense.parameters}

    def put(name: str, value: torch.Tensor) -> None:
        dense.load([(name, value)])
        there.ask(lambda worker: worker._es_master[name].copy_(value))

    before = there.prompt_logprobs(PROMPT)
    offset = float((before - dense.logprobs(PROMPT, 1)).abs().max())
    worst, least = (0.0, "none"), float("inf")
    chosen = list(base)[:: max(1, len(base) // tensors)] if tensors else list(base)
    for number, name in enumerate(chosen):
        generator = torch.Generator().manual_seed(number)
        scale = base[name].square().mean().sqrt()
        put(name, base[name] + scale * torch.randn(base[name].shape, generator=generator))
        there.write(None)
        found, wanted = there.prompt_logprobs(PROMPT), dense.logprobs(PROMPT, 1)
        error, moved = float((found - wanted).abs().max()), float((found - before).abs().max())
        _require(moved > 3 * offset, f"{name} does not arrive: log-probabilities move by {moved:.2g}, {offset=:.2g}")
        _require(
            error < _TOLERANCE * moved + offset,
            f"{name}: log-probabilities move by {moved:.2g} but are off by {error:.2g}, {offset=:.2g}",
        )
        worst, least = max(worst, (error, name)), min(least, moved)
        put(name, base[name])
    return offset, (
        f"{len(chosen)} tensors changed one by one: each moves vLLM's log-probabilities by {least:.2g} or more, to "
        f"those of transformers up to {worst[0]:.2g} ({worst[1]}; {offset:.2g} with none changed)"
    )


def _check_decoding(there: LocalEngine, here: Any, dense: Dense, offset: float) -> float:
    """Write every member's weights, and compare every tenth member's decoded log-probabilities.

    Returns:
        the largest difference from ``transformers``.
    """
    worst = 0.0
    for seed in range(MEMBERS):
        there.write(seed)
        if seed % 10 == 0:
            dense.load(here.perturbed(seed, SIGMA, torch.float32))
            there.llm.reset_prefix_cache()
            ((tokens, logprobs),) = there.answers()
            error = _error(dense, tokens, logprobs)
            worst = max(worst, error)
            _require(error < 3 * offset + 0.01, f"member {seed}: decoded log-probabilities are off by {error:.3f}")
    return worst


def check_members(model: Path) -> str:
    """Compare low-rank members in one batch with ``transformers``. Exits if they differ.

    Args:
        model: folder of a trained model.
    """
    from vllm.lora.request import LoRARequest

    from esplug.noise import low_rank
    from esplug.weights.master import MasterWeights

    there = LocalEngine(model, "float32", 0.3, low_rank=_RANK, members_at_once=MEMBERS)
    here, dense = MasterWeights.load(model, "float32"), Dense(model)
    ((tokens, logprobs),) = there.answers()
    offset = _error(dense, tokens, logprobs)
    there.llm.collective_rpc("es_set_members", args=([(seed, _SCALE) for seed in range(MEMBERS)],))
    answers = there.answers([LoRARequest(f"member {seed}", seed + 1, "made from its seed") for seed in range(MEMBERS)])
    alone = [dense.logprobs(PROMPT + tokens, len(PROMPT)) for tokens, _ in answers]
    linear = [name for name in here.names if low_rank.is_perturbed(name, here[name].shape)]
    worst, least = 0.0, float("inf")
    for seed, (tokens, logprobs) in enumerate(answers):
        noise = ((name, low_rank.eps(seed, name, here[name].shape, _RANK)) for name in linear)
        dense.load((name, here[name] + _SCALE * eps) for name, eps in noise)
        error = _error(dense, tokens, logprobs)
        moved = float((logprobs - alone[seed]).abs().max())
        worst, least = max(worst, error), min(least, moved)
        holds = moved > 3 * offset and error < _TOLERANCE * moved + offset
        _require(holds, f"member {seed} of rank {_RANK}: off by {error:.3g}, moved by {moved:.3g}, {offset=:.3g}")
    return (
        f"{MEMBERS} members of rank {_RANK} in one batch: decoded log-probabilities move by {least:.2g} or more, to "
        f"those of transformers up to {worst:.2g} ({offset:.2g} without); CUDA graphs: {there.graphs()}"
    )


def switches(name: str, model: Path, repeats: int) -> Row:
    """Time switches to other members through vLLM, written directly and by ``reload_weights``, and updates."""
    there = LocalEngine(model, "bfloat16" if GPU else "float32", 0.5)

    def reload(seed: int) -> None:
        def work(worker: Any) -> None:
            dtype = worker.model_runner.model_config.dtype
            worker._es_reload(worker._es_master.perturbed(seed, SIGMA, dtype))

        there.ask(work)

    fast = there.ask(lambda worker: worker._es_fast_path is not None)
    others = itertools.count()
    quick = seconds(lambda: there.write(next(others)), repeats)
    there.write(1)
    state = there.fingerprint()
    slow = seconds(lambda: reload(next(others)), repeats)
    reload(1)
    alike = state == there.fingerprint()
    seeds, steps = list(range(MEMBERS)), [1e-6] * MEMBERS
    update = seconds(lambda: there.engine.update(seeds, steps), repeats)
    return {
        "model": name,
        "fast path": "yes" if fast else "no",
        "switch, ms": 1e3 * quick,
        "reload_weights, ms": 1e3 * slow,
        "ratio": slow / quick,
        "the same weights": "yes" if alike else "NO",
        f"update N={MEMBERS} and checksum, ms": 1e3 * update,
        "CUDA graphs": there.graphs(),
    }

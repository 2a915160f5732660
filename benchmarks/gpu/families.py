"""Tiny models of many architectures: how an engine writes their weights, and how far it is off ``transformers``."""

import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.device import GPU, Row
from benchmarks.gpu.engines import LocalEngine, apart

ARCHITECTURES = (
    *("llama", "qwen2", "qwen3", "gemma", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2", "granite"),
    *("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "glm4_moe", "granitemoe"),
)
_TIED = {"qwen3", "gemma", "gemma2", "gemma3_text"}
_SHARE, _CACHE = 0.1, 2**28  # share of the GPU's memory for an engine, and bytes of its KV cache
_PROMPT = list(range(5, 45))


def measure(dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Iterator[Row]:
    """Yield a row for each architecture and type."""
    for dtype in dtypes[: 2 if GPU else 1]:
        for (
            architecture
        ) in ARCHITECTURES:  # one by one, because engines that start together measure free memory wrongly
            yield {"architecture": architecture, "dtype": dtype, **apart(_try, architecture, dtype)}


def _try(architecture: str, dtype: str) -> Row:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    try:
        with tempfile.TemporaryDirectory() as place:
            return _compare(Path(place), architecture, dtype)
    except BaseException as error:  # a row of the table
        traceback.print_exc()
        return {"weights": f"refused: {str(error)[:300]}", "base": "", "tensors": "", "restored": "", "update": ""}


def _compare(folder: Path, architecture: str, dtype: str) -> Row:
    """Compare the base model, each tensor changed alone, and an update with ``transformers``."""
    from safetensors.torch import load_file

    from esplug.noise.full_rank import eps
    from tests.helpers.tiny import make_tiny_model
    from tests.helpers.vllm import reference_logprobs

    make_tiny_model(folder, architecture, architecture in _TIED, dtype)
    tensors = load_file(folder / "model.safetensors")
    engine = LocalEngine(folder, dtype, _SHARE, _CACHE)
    base = engine.prompt_logprobs(_PROMPT)
    row: Row = {"weights": "direct" if engine.ask(lambda worker: worker._es_fast_path is not None) else "through vLLM"}
    row["base"] = _apart(base, reference_logprobs(folder, tensors, _PROMPT))
    worst, least = (0.0, ""), (float("inf"), "")
    for name, tensor in tensors.items() if dtype == "float32" else ():
        changed = tensor + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        engine.ask(lambda worker, name=name, to=changed: worker._es_master[name].copy_(to))
        engine.write(None)
        found = engine.prompt_logprobs(_PROMPT)
        worst = max(worst, (_apart(found, reference_logprobs(folder, tensors | {name: changed}, _PROMPT)), name))
        least = min(least, (_apart(found, base.tolist()), name))
        engine.ask(lambda worker, name=name, to=tensor: worker._es_master[name].copy_(to))
    row["tensors"] = (
        ""
        if dtype != "float32"
        else f"{len(tensors)}: off {worst[0]:.2g} ({worst[1]}), moved {least[0]:.2g} ({least[1]})"
    )
    engine.write(None)
    row["restored"] = "yes" if _apart(engine.prompt_logprobs(_PROMPT), base.tolist()) == 0 else "NO"
    steps = {5: 0.02, 6: -0.01}
    engine.engine.update(list(steps), list(steps.values()))
    engine.write(None)
    updated = {
        name: each.float() + sum(c * eps(s, name, 0, each.numel()) for s, c in steps.items()).view_as(each)
        for name, each in tensors.items()
    }
    row["update"] = _apart(engine.prompt_logprobs(_PROMPT), reference_logprobs(folder, updated, _PROMPT))
    return row


def _apart(found: Any, expected: list[float]) -> float:
    return float((torch.as_tensor(found) - torch.tensor(expected)).abs().max())

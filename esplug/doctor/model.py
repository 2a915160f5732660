"""Whether a run's model is there, is whole, and fits on the machine with the run's settings."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from esplug.config import RunConfig
from esplug.doctor.finding import Finding
from esplug.doctor.machine import disk, free_memory, local_resources
from esplug.doctor.stack import Stack
from esplug.errors import UserError
from esplug.hub import hub_revision
from esplug.memory import MemoryPlan, cpu_items, plan_memory, size
from esplug.model import kept_folder, longest_prompt, may_be_on_hub, model_folder, weights_size
from esplug.placement import plan_engines
from esplug.seed_log import FILE_NAME, read
from esplug.starting_model import kind_of

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_NOT_OFFLINE = ("", "0", "false", "no", "off")


def described_by(config: RunConfig) -> tuple[str, str]:
    """Return the name of the model whose sizes and tokenizer a run has, and the flag that names it.

    That is the checkpoint if it is a model, what a seed log started from, and otherwise ``model_name``.

    Raises:
        UserError: the seed log is missing or damaged.
    """
    name, flag = config.checkpoint or config.model_name, "--checkpoint" if config.checkpoint else "--model-name"
    for _ in range(10):  # a log may have started from a log
        kind = kind_of(name)
        if kind == "pth":
            return config.model_name, "--model-name"
        if kind == "model":
            return name, flag
        path = Path(name).expanduser()
        name = read(path / FILE_NAME if path.is_dir() else path, 0).header.base.name
    return name, flag


def model(config: RunConfig, stack: Stack) -> tuple[Path | None, list[Finding]]:
    """Look for the model. Returns its folder if it is on this machine and whole."""
    try:
        name, flag = described_by(config)
        folder = kept_folder(name, flag)
        if folder is None:
            return None, [_to_be_fetched(name, flag)]
        if Path(name).expanduser().is_dir():
            folder = model_folder(name, flag)
        longest_prompt(folder, config.max_model_len, config.max_tokens)
        stored, elements = weights_size(folder)
    except UserError as error:
        return None, [Finding("model", "fail", str(error))]
    kinds = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    found = (
        f"{name}: {elements / 1e9:.2f} billion weights, {size(stored)}, {', '.join(kinds) or 'no architecture named'}"
    )
    findings = [Finding("model", "ok", found)]
    if kinds and stack.architectures and not set(kinds) & set(stack.architectures):
        remedy = "it may serve it through transformers; otherwise choose a model that vLLM lists"
        findings.append(Finding("model", "warning", f"this vLLM has no {', '.join(kinds)} of its own", remedy))
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        findings.append(Finding("model", "fail", f"{folder} has no tokenizer", "fetch the model again"))
    return folder, findings


def fit(config: RunConfig, folder: Path, stack: Stack) -> tuple[MemoryPlan | None, list[Finding]]:
    """Place the run's engines on this machine, and compare what they take with what there is."""
    free = free_memory()
    gpus = [] if config.use_gpus == "none" else stack.gpus
    try:
        items = cpu_items(folder, config)
        plan = plan_engines(config, local_resources(len(gpus)), sum(item.nbytes for item in items))
        memory = plan_memory(folder, config, plan, free, gpus)
    except UserError as error:
        return None, [Finding("engines", "fail", str(error))]
    stored, elements = weights_size(folder)
    master = 4 * elements if config.master_dtype == "float32" else stored
    findings = [Finding("engines", "ok", plan.describe()), *_fitting(config, memory), disk(config, stored, master)]
    return memory, findings


def _fitting(config: RunConfig, memory: MemoryPlan) -> Iterator[Finding]:
    taken, free = memory.taken("memory"), memory.free
    found = f"{memory.plan.n_engines} x {size(taken // memory.plan.n_engines)} = {size(taken)} of {size(free)} free"
    remedy = "choose fewer --n-vllm-engines, --master-dtype model, or a smaller model"
    state = "fail" if taken > free else "warning" if taken > 0.9 * free else "ok"
    yield Finding("memory", state, found, "" if state == "ok" else remedy)  # type: ignore[arg-type]
    if memory.gpu:
        yield _gpu_fitting(config, memory)
    tokens, longest = memory.kv_tokens, memory.longest
    if not tokens or not longest:
        return
    cache = size(max(1, memory.plan.gpus_per_engine) * memory.kv_cache)
    found = f"{cache} an engine: {tokens:,} tokens, {tokens // longest:,} answers of full length at a time"
    if tokens < longest:
        remedy = f"give --max-model-len {max(8, tokens // 32 * 32)} or less; the model's own is {longest}"
        yield Finding("KV cache", "fail", found, remedy)
    else:
        yield Finding("KV cache", "ok", found)


def _gpu_fitting(config: RunConfig, memory: MemoryPlan) -> Finding:
    gpu, plan = memory.gpu, memory.plan
    assert gpu is not None
    share = config.gpu_memory_utilization or plan.memory_share
    found = (
        f"vLLM takes {share:g} of {size(gpu.total)}, and {size(gpu.free)} are free; all: {size(memory.taken('GPU'))}"
    )
    if memory.kv_cache == 0:
        remedy = f"span more GPUs: --n-gpu-per-vllm-engine {2 * plan.gpus_per_engine}"
        if plan.engines_per_gpu > 1:
            remedy = "choose fewer --n-vllm-engines-per-gpu"
        return Finding("GPU memory", "fail", f"{found}: the model leaves no room for a KV cache", remedy)
    if gpu.free < share * gpu.total:
        remedy = f"end what uses the GPU, or give --gpu-memory-utilization {max(0.05, 0.95 * gpu.free / gpu.total):.2f}"
        return Finding("GPU memory", "fail", found, remedy)
    if memory.taken("GPU") > gpu.free:
        remedy = "lower --gpu-memory-utilization, or choose --master-device host"
        return Finding("GPU memory", "fail", found, remedy)
    return Finding("GPU memory", "ok", found)


def _to_be_fetched(name: str, flag: str) -> Finding:
    if not may_be_on_hub(name):
        return Finding("model", "fail", f"{flag} {name}: no such folder", "name a folder, or a Hugging Face id")
    repo, _, revision = name.partition("@")
    remedy = f"where the Hub is in reach: hf download {repo} --local-dir DIR, then {flag} DIR"
    for variable in _OFFLINE:
        if os.environ.get(variable, "").strip().lower() not in _NOT_OFFLINE:
            return Finding("model", "fail", f"{name} is not on this machine, and {variable} is set", remedy)
    try:
        commit = hub_revision(repo, revision or None, "model")
    except LookupError as error:
        return Finding("model", "fail", f"the Hub does not give {name} out: {error}", "hf auth login, or mend the name")
    if commit is None:
        return Finding("model", "fail", f"{name} is not on this machine, and the Hub is out of reach", remedy)
    from huggingface_hub import get_token

    found = f"{name} will be fetched from the Hub, {'with' if get_token() else 'without'} a token; whether it fits is"
    return Finding("model", "ok", f"{found} known then")

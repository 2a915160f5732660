"""Whether a run's model is there, is whole, and fits on the machine with the run's settings."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from esplug.checkpoints.base_model import kept_folder, longest_prompt, may_be_on_hub, model_folder, weights_size
from esplug.checkpoints.seed_log import FILE_NAME, read
from esplug.checkpoints.starting_model import kind_of
from esplug.config import RunConfig
from esplug.doctor.finding import Finding, State
from esplug.doctor.machine import disk, local_resources, nearest_folder
from esplug.doctor.stack import Stack
from esplug.errors import UserError
from esplug.planning.memory import Gpu, MemoryPlan, cpu_items, master_bytes, plan_memory, size
from esplug.planning.placement import GPU_KV_CACHE_MIN, GPU_SPARE, plan_engines
from esplug.utils.free_memory import free_memory
from esplug.utils.hub import hub_revision

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_NOT_OFFLINE = ("", "0", "false", "no", "off")
#: Engines on a GPU, and up to how many bytes of weights they answered 2.3 or 1.3 times as fast as one (benchmarks).
_SHARING = ((4, 2e9), (2, 4e9))


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
    """Place the run's engines on this machine, and compare what they take with what there is.

    A cluster may have more, so that with ``ray_address`` nothing that is missing here is a failure.
    """
    free = free_memory()
    gpus = [] if config.use_gpus == "none" else stack.gpus
    try:
        items = cpu_items(folder, config)
        here = local_resources(len(gpus))
        plan = plan_engines(config, here, sum(item.nbytes for item in items))
        memory = plan_memory(folder, config, plan, free, gpus)
    except UserError as error:
        return None, [_here(config, Finding("engines", "fail", str(error)))]
    found = plan.describe()
    if more := _would_share(memory, here.cores):
        found += f"; with a model this small, --n-vllm-engines-per-gpu {more} answers faster"
    placed = [Finding("engines", "ok", found), *_fitting(config, memory, gpus)]
    saved = disk(config, weights_size(folder)[0], master_bytes(folder, config.master_dtype))
    return memory, [*(_here(config, finding) for finding in placed), saved]


def _would_share(memory: MemoryPlan, cores: int) -> int | None:
    """Return how many engines would fit on a GPU that has one, and be worth it."""
    plan, weights = memory.plan, next(item.nbytes for item in memory.items if item.what == "weights")
    if memory.gpu is None or plan.engines_per_gpu > 1 or plan.gpus_per_engine > 1:
        return None
    each, room = memory.taken("GPU") - memory.kv_cache + GPU_SPARE, 0.8 * memory.gpu.free
    fitting = (n for n, largest in _SHARING if weights <= largest and n * each <= room and n * plan.n_gpus <= cores)
    return next(fitting, None)


def _here(config: RunConfig, finding: Finding) -> Finding:
    """Say of a failure that it need not be one on a cluster."""
    if not config.ray_address or finding.state != "fail":
        return finding
    return replace(finding, state="warning", found=f"{finding.found} (counted on this machine only)")


def _fitting(config: RunConfig, memory: MemoryPlan, gpus: list[Gpu]) -> Iterator[Finding]:
    taken, free = memory.taken("memory"), memory.free
    found = f"{memory.plan.n_engines} x {size(taken // memory.plan.n_engines)} = {size(taken)} of {size(free)} free"
    remedy = "choose fewer --n-vllm-engines, --master-dtype model, or a smaller model"
    state: State = "fail" if taken > free else "warning" if taken > 0.9 * free else "ok"
    yield Finding("memory", state, found, "" if state == "ok" else remedy)
    if memory.gpu:
        yield _gpu_fitting(config, memory, gpus)
    tokens, longest = memory.kv_tokens, memory.longest
    cache = size(max(1, memory.plan.gpus_per_engine) * memory.kv_cache)
    if not memory.kv_cache:
        return
    if tokens is None or not longest:
        yield Finding("KV cache", "ok", f"{cache} an engine; how many answers that holds is unknown for this model")
        return
    found = f"{cache} an engine: {tokens:,} tokens, {tokens // longest:,} answers of full length at a time"
    if tokens < longest:
        remedy = f"give --max-model-len {max(8, tokens // 32 * 32)} or less; the model's own is {longest}"
        yield Finding("KV cache", "fail", found, remedy)
    else:
        yield Finding("KV cache", "ok", found)


def _gpu_fitting(config: RunConfig, memory: MemoryPlan, gpus: list[Gpu]) -> Finding:
    gpu, plan, room = memory.gpu, memory.plan, memory.master_room
    assert gpu is not None
    assert room is not None
    share = memory.share
    found = (
        f"vLLM takes {share:g} of {size(gpu.total)}, and {size(gpu.free)} are free; all: {size(memory.taken('GPU'))}"
    )
    if memory.kv_cache < (GPU_KV_CACHE_MIN if plan.engines_per_gpu > 1 else 1):
        remedy = f"span more GPUs: --n-gpu-per-vllm-engine {2 * plan.gpus_per_engine}"
        if plan.engines_per_gpu > 1:
            remedy = "choose fewer --n-vllm-engines-per-gpu"
        return Finding("GPU memory", "fail", f"{found}: the model leaves no room for a KV cache", remedy)
    named = config.use_gpus.split(",") if config.use_gpus else []
    names = named if len(named) == len(gpus) else map(str, range(len(gpus)))
    roomy = [name for name, each in zip(names, gpus, strict=True) if each.free >= share * each.total]
    if gpu.free < share * gpu.total:
        return Finding("GPU memory", "fail", found, _less_of_gpus(config, memory, roomy))
    master = next(item for item in memory.items if item.what == "master")
    crowded = config.master_device == "gpu" and master.nbytes > room
    if crowded:
        found += f"; the master takes {size(master.nbytes)}, and there is room for {size(max(0, room))} beside vLLM"
    if crowded or memory.taken("GPU") > gpu.free:
        remedy = "lower --gpu-memory-utilization, or choose --master-device host"
        return Finding("GPU memory", "fail", found, remedy)
    if len(roomy) < len(gpus):
        found += f"; {len(gpus) - len(roomy)} of the {len(gpus)} GPUs, which Ray may choose, have less"
        return Finding("GPU memory", "warning", found, _less_of_gpus(config, memory, roomy))
    return Finding("GPU memory", "ok", found)


def _less_of_gpus(config: RunConfig, memory: MemoryPlan, roomy: list[str]) -> str:
    """Say how to do with what is free: on the GPUs of these indices, or with a smaller share of each."""
    gpu, remedy = memory.gpu, "end what uses the GPU"
    assert gpu is not None
    if len(roomy) >= memory.plan.gpus_per_engine:
        fewer = " with fewer --n-vllm-engines" if config.n_vllm_engines and len(roomy) < memory.plan.n_gpus else ""
        return f"{remedy}, or give --use-gpus {','.join(roomy)}{fewer}"
    share = 0.95 * gpu.free / gpu.total
    return f"{remedy}, or give --gpu-memory-utilization {share:.2f}" if share >= 0.05 else remedy


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
    from huggingface_hub import constants, get_token

    cache = nearest_folder(constants.HF_HUB_CACHE)
    found = f"{name} will be fetched from the Hub, {'with' if get_token() else 'without'} a token, into {cache}, where "
    return Finding(
        "model", "ok", f"{found}{size(shutil.disk_usage(cache).free)} are free; whether it fits is known then"
    )

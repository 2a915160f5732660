"""Checks of the model: it is on this machine, it is complete, and it fits with the run's settings."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from esplug.checkpoints.base_model import (
    check_on_hub,
    is_in_local_folder,
    kind_of_folder,
    local_model_folder,
    longest_prompt,
    may_be_on_hub,
    model_folder,
    no_such_folder,
    weights_size,
)
from esplug.checkpoints.model_kind import ModelUse
from esplug.checkpoints.seed_log import read
from esplug.checkpoints.starting_model import kind_of, log_file
from esplug.config import RunConfig
from esplug.data.prompt_encoder import PromptEncoder
from esplug.doctor.finding import Finding, State
from esplug.doctor.machine import check_disk, local_resources, nearest_folder
from esplug.doctor.stack import Stack
from esplug.engines.cluster import cluster_address
from esplug.errors import UserError
from esplug.planning.memory import Gpu, MemoryPlan, cpu_items, master_bytes, plan_memory, size
from esplug.planning.placement import GPU_KV_CACHE_MIN, GPU_SPARE, plan_engines
from esplug.utils.free_memory import free_memory
from esplug.utils.hub import hub_revision
from esplug.vllm_worker.families import how_written

#: Engines per GPU, and the largest weights in bytes with which they measured 2.3 or 1.3 times the speed of one engine.
_SHARING = ((4, 2e9), (2, 4e9))


def described_by(config: RunConfig) -> tuple[str, str]:
    """Return the name of the model that gives a run its sizes and tokenizer, and the flag that names it.

    This is the checkpoint if that is a model, the base model of a seed log, and otherwise ``model_name``.

    Raises:
        UserError: the seed log is missing or damaged.
    """
    name, flag = config.checkpoint or config.model_name, "--checkpoint" if config.checkpoint else "--model-name"
    for _ in range(10):  # the base of a seed log can be another seed log
        kind = kind_of(name)
        if kind == "pth":
            return config.model_name, "--model-name"
        if kind == "model":
            return name, flag
        name = read(log_file(Path(name)), 0).header.base.name
    return name, flag


def check_model(config: RunConfig, stack: Stack) -> tuple[Path | None, list[Finding]]:
    """Check that the model is on this machine and complete. Return its folder, or ``None`` if it is not."""
    use = ModelUse.of(config)
    try:
        name, flag = described_by(config)
        folder = local_model_folder(name, flag)
        if folder is None:
            return None, [_download(name, flag, use)]
        if Path(name).expanduser().is_dir():
            folder = model_folder(name, flag, use)
        notes = kind_of_folder(folder, use).notes()
        longest_prompt(folder, config.max_model_len, config.max_tokens)
        stored, elements = weights_size(folder)
    except UserError as error:
        return None, [Finding("model", "fail", str(error))]
    kinds = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    listed = ", ".join(kinds) or "no architecture given"
    findings = [Finding("model", "ok", f"{name}: {elements / 1e9:.2f} billion weights, {size(stored)}, {listed}")]
    findings.append(Finding("weights", "ok", how_written(kinds)))
    findings += [Finding("model", "warning", note) for note in notes]
    if kinds and stack.architectures and not set(kinds) & set(stack.architectures):
        remedy = "vLLM may run it through transformers; otherwise choose a model that vLLM supports"
        findings.append(Finding("model", "warning", f"this vLLM has no implementation of {listed}", remedy))
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        findings.append(Finding("model", "fail", f"{folder} has no tokenizer", "download the model again"))
        return folder, findings
    try:
        described = PromptEncoder.load(folder, config).describe()
    except UserError as error:
        return folder, [*findings, Finding("model", "fail", str(error))]
    return folder, findings + [Finding(what, "ok", description) for what, description in described.items()]


def check_fit(config: RunConfig, folder: Path, stack: Stack) -> tuple[MemoryPlan | None, list[Finding]]:
    """Place the run's engines on this machine, and compare the memory they need with what is free."""
    free = free_memory()
    gpus = [] if config.use_gpus == "none" else stack.gpus
    try:
        here = local_resources(len(gpus))
        plan = plan_engines(config, here, sum(item.nbytes for item in cpu_items(folder, config)))
        memory = plan_memory(folder, config, plan, free, gpus)
    except UserError as error:
        return None, [_only_here(config, Finding("engines", "fail", str(error)))]
    more = _faster_sharing(memory, here.cores) if config.rollout == "vllm" else None
    advice = f"; --n-vllm-engines-per-gpu {more} is faster with a model this small" if more else ""
    placed = [Finding("engines", "ok", plan.describe() + advice), *_check_memory(config, memory, gpus)]
    disk = check_disk(config, weights_size(folder)[0], master_bytes(folder, config.master_dtype))
    return memory, [*(_only_here(config, finding) for finding in placed), disk]


def _faster_sharing(memory: MemoryPlan, cores: int) -> int | None:
    """Return how many engines should share a GPU that has one engine, or ``None`` if sharing does not pay or fit."""
    plan, weights = memory.plan, next(item.nbytes for item in memory.items if item.what == "weights")
    if memory.gpu is None or plan.engines_per_gpu > 1 or plan.gpus_per_engine > 1:
        return None
    each, budget = memory.used("GPU") - memory.kv_cache + GPU_SPARE, 0.8 * memory.gpu.free
    fitting = (n for n, largest in _SHARING if weights <= largest and n * each <= budget and n * plan.n_gpus <= cores)
    return next(fitting, None)


def _only_here(config: RunConfig, finding: Finding) -> Finding:
    """Turn a failure into a warning if the run uses a cluster, which may have more than this machine."""
    if not cluster_address(config) or finding.state != "fail":
        return finding
    return replace(finding, state="warning", found=f"{finding.found} (counted on this machine only)")


def _check_memory(config: RunConfig, memory: MemoryPlan, gpus: list[Gpu]) -> Iterator[Finding]:
    taken, free, plan = memory.used("memory"), memory.free, memory.plan
    found = f"{plan.n_engines} x {size(taken // plan.n_engines)} = {size(taken)} of {size(free)} free"
    remedy = "use fewer --n-vllm-engines, --master-dtype model, or a smaller model"
    state: State = "fail" if taken > free else "warning" if taken > 0.9 * free else "ok"
    yield Finding("memory", state, found, "" if state == "ok" else remedy)
    if memory.gpu:
        yield _check_gpu_memory(config, memory, gpus)
    if memory.kv_cache:
        yield _check_kv_cache(memory)


def _check_kv_cache(memory: MemoryPlan) -> Finding:
    tokens, longest = memory.kv_tokens, memory.longest
    cache = f"{size(max(1, memory.plan.gpus_per_engine) * memory.kv_cache)} per engine"
    if tokens is None or not longest:
        return Finding("KV cache", "ok", f"{cache}; its capacity in tokens is unknown for this model")
    found = f"{cache}: {tokens:,} tokens, {tokens // longest:,} answers of full length at a time"
    if tokens >= longest:
        return Finding("KV cache", "ok", found)
    remedy = f"set --max-model-len {max(8, tokens // 32 * 32)} or less; the default is {longest}"
    return Finding("KV cache", "fail", found, remedy)


def _check_gpu_memory(config: RunConfig, memory: MemoryPlan, gpus: list[Gpu]) -> Finding:
    gpu, plan, share, master_room = memory.gpu, memory.plan, memory.share, memory.master_room
    assert gpu is not None
    assert master_room is not None
    found = f"vLLM uses {share:g} of {size(gpu.total)}; {size(memory.used('GPU'))} needed of {size(gpu.free)} free"
    if memory.kv_cache < (GPU_KV_CACHE_MIN if plan.engines_per_gpu > 1 else 1):
        more = f"use more GPUs per engine: --n-gpu-per-vllm-engine {2 * plan.gpus_per_engine}"
        remedy = "use fewer --n-vllm-engines-per-gpu" if plan.engines_per_gpu > 1 else more
        return Finding("GPU memory", "fail", f"{found}: the model leaves no memory for a KV cache", remedy)
    named = config.use_gpus.split(",") if config.use_gpus else []
    names = named if len(named) == len(gpus) else map(str, range(len(gpus)))
    roomy = [name for name, each in zip(names, gpus, strict=True) if each.free >= share * each.total]
    if gpu.free < share * gpu.total:
        return Finding("GPU memory", "fail", found, _use_less(config, memory, roomy))
    master = next(item for item in memory.items if item.what == "master")
    too_large = config.master_device == "gpu" and master.nbytes > master_room
    if too_large:
        found += f"; the master needs {size(master.nbytes)}, but vLLM leaves {size(max(0, master_room))}"
    if too_large or memory.used("GPU") > gpu.free:
        return Finding("GPU memory", "fail", found, "lower --gpu-memory-utilization, or use --master-device host")
    if len(roomy) < len(gpus):
        found += f"; {len(gpus) - len(roomy)} of the {len(gpus)} GPUs have less free memory, and Ray may choose them"
        return Finding("GPU memory", "warning", found, _use_less(config, memory, roomy))
    return Finding("GPU memory", "ok", found)


def _use_less(config: RunConfig, memory: MemoryPlan, roomy: list[str]) -> str:
    """Suggest the GPUs with enough free memory, or a smaller share of each GPU."""
    gpu, remedy = memory.gpu, "end the processes that use the GPU"
    assert gpu is not None
    if len(roomy) >= memory.plan.gpus_per_engine:
        fewer = " with fewer --n-vllm-engines" if config.n_vllm_engines and len(roomy) < memory.plan.n_gpus else ""
        return f"{remedy}, or set --use-gpus {','.join(roomy)}{fewer}"
    share = 0.95 * gpu.free / gpu.total
    return f"{remedy}, or set --gpu-memory-utilization {share:.2f}" if share >= 0.05 else remedy


def _download(name: str, flag: str, use: ModelUse) -> Finding:
    """Check that a model that is not on this machine can be downloaded."""
    found = _on_hub(name, flag, use) if may_be_on_hub(name) else None
    if found is None or (found.state == "fail" and is_in_local_folder(name)):
        return Finding("model", "fail", no_such_folder(name, flag), "correct the path")
    return found


def _on_hub(name: str, flag: str, use: ModelUse) -> Finding:
    repo, _, revision = name.partition("@")
    remedy = f"on a machine that can reach the Hub: hf download {repo} --local-dir DIR, then {flag} DIR"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no", "off"):
            return Finding("model", "fail", f"{name} is not on this machine, and {variable} is set", remedy)
    try:
        commit = hub_revision(repo, revision or None, "model")
    except LookupError as error:
        return Finding("model", "fail", f"the Hub refuses {name}: {error}", "hf auth login, or correct the name")
    if commit is None:
        return Finding("model", "fail", f"{name} is not on this machine, and the Hub cannot be reached", remedy)
    check_on_hub(name, commit, use, flag)
    from huggingface_hub import constants, get_token

    cache = nearest_folder(constants.HF_HUB_CACHE)
    token, free = "with" if get_token() else "without", size(shutil.disk_usage(cache).free)
    found = f"{name} will be downloaded from the Hub {token} a token into {cache}, where {free} are free"
    return Finding("model", "ok", f"{found}; whether it fits is checked afterwards")

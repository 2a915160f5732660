"""Whether torch, transformers, vLLM and Ray can be imported, and the GPUs that torch sees; found in another process.

Importing takes seconds and can crash, and CUDA stays with a process that has looked; ``python -m esplug.doctor.stack``
therefore does it, and prints what it found as its last line, in JSON.
"""

import importlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from esplug.engines.cluster import visible_devices
from esplug.errors import UserError
from esplug.planning.memory import Gpu

_MODULES = ("torch", "transformers", "ray", "vllm")
_TIMEOUT = 180.0  # seconds, for a cold disk


@dataclass(frozen=True, slots=True)
class Stack:
    """What another process has found.

    Attributes:
        broken: module name to the error that its import ends with.
        cuda: the CUDA version that torch was built for; ``None`` for a CPU build.
        cuda_error: why torch cannot use CUDA, where it was built for it.
        gpus: that torch can drive and that the run may use.
        architectures: of models that vLLM knows by name.
    """

    broken: dict[str, str] = field(default_factory=dict)
    cuda: str | None = None
    cuda_error: str | None = None
    gpus: list[Gpu] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)


def look(use_gpus: str | None = None) -> Stack:
    """Import everything in another process.

    Args:
        use_gpus: the setting of that name.
    """
    environment = dict(os.environ)
    if use_gpus is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        chosen = "" if use_gpus == "none" else use_gpus
        with suppress(UserError):  # more than there are, which placing the engines refuses
            environment["CUDA_VISIBLE_DEVICES"] = visible_devices(use_gpus, visible) if chosen and visible else chosen
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, env=environment, stdin=subprocess.DEVNULL
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Stack({"torch, vllm and ray": f"importing them takes longer than {_TIMEOUT:g} s"})
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        return Stack({"torch, vllm and ray": f"importing them ends the process ({done.returncode}: {last[:200]})"})
    return Stack(**found | {"gpus": [Gpu(**gpu) for gpu in found["gpus"]]})


def _report() -> dict[str, Any]:
    found: dict[str, Any] = {"broken": {}, "gpus": []}
    for name in _MODULES:
        try:
            importlib.import_module(name)
            if name == "vllm":  # which imports its parts when they are asked for
                from vllm import LLM, ModelRegistry  # noqa: F401

                found["architectures"] = sorted(ModelRegistry.get_supported_archs())
        except BaseException as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            found["broken"][name] = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
    if "torch" not in found["broken"]:
        found |= _cuda()
    return found


def _cuda() -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        return {}
    found: dict[str, Any] = {"cuda": torch.version.cuda, "gpus": []}
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            found["gpus"].append({"name": torch.cuda.get_device_name(index), "total": total, "free": free})
    except Exception as error:
        found["cuda_error"] = str(error).splitlines()[0][:300]
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(_report()))

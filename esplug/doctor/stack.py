"""Probe of the software stack: imports torch, transformers, vLLM and Ray, and lists the GPUs that torch can use.

The probe runs in another process, ``python -m esplug.doctor.stack``, because imports take seconds and can crash, and
because a process that has initialised CUDA keeps it. Its last line of output is the result, as JSON.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from esplug.engines.cluster import visible_devices
from esplug.errors import UserError
from esplug.planning.memory import Gpu
from esplug.utils.torch_builds import COMPANIONS

_MODULES = ("torch", "transformers", "ray", "vllm")
_TIMEOUT = 180.0  # seconds, for a cold disk


@dataclass(frozen=True, slots=True)
class Stack:
    """Result of the probe.

    Attributes:
        broken: import errors by module.
        cuda: CUDA version that torch was built for; ``None`` for a CPU build.
        cuda_error: why a CUDA build of torch cannot use CUDA.
        gpus: GPUs that torch can use and that the run may use.
        architectures: those that vLLM supports.
    """

    broken: dict[str, str] = field(default_factory=dict)
    cuda: str | None = None
    cuda_error: str | None = None
    gpus: list[Gpu] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)


def inspect_stack(use_gpus: str | None = None) -> Stack:
    """Probe the stack in another process, with the GPUs that the setting ``use_gpus`` makes visible."""
    environment = dict(os.environ)
    if use_gpus is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        chosen = "" if use_gpus == "none" else use_gpus
        with suppress(UserError):  # it names GPUs that do not exist; placing the engines reports that
            environment["CUDA_VISIBLE_DEVICES"] = visible_devices(use_gpus, visible) if chosen and visible else chosen
    command, silent = [sys.executable, "-m", __name__], subprocess.DEVNULL
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=environment, stdin=silent)
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Stack({"torch, vllm and ray": f"importing them takes longer than {_TIMEOUT:g} s"})
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Stack({"torch, vllm and ray": f"importing them ends the process ({done.returncode}: {last[:200]})"})
    return Stack(**found | {"gpus": [Gpu(**gpu) for gpu in found["gpus"]]})


def _probe() -> dict[str, Any]:
    found: dict[str, Any] = {"broken": {}, "gpus": []}
    for name in _MODULES:
        with _recorded(name, found["broken"]):
            importlib.import_module(name)
            if name == "vllm":  # imports its parts lazily
                from vllm import LLM, ModelRegistry  # noqa: F401

                found["architectures"] = sorted(ModelRegistry.get_supported_archs())
    if found["broken"].keys() & {"transformers", "vllm"}:  # perhaps by a package that both import if it is there
        for name in filter(importlib.util.find_spec, COMPANIONS):
            with _recorded(name, found["broken"]):
                importlib.import_module(name)
    if "torch" not in found["broken"]:
        found |= _cuda()
    return found


@contextmanager
def _recorded(name: str, broken: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        broken[name] = f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


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
    print("\n" + json.dumps(_probe()))

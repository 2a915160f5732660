"""Usage of hardware by an engine: with NVML as it should be, without it, and failing in part."""

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from esplug.engines import usage
from esplug.engines.usage import EngineUsage, UsageMeter, resident_memory


class FakeNvml:
    """Two GPUs and a MIG instance. ``broken`` names the functions that fail. UUIDs are also the handles."""

    def __init__(self, *broken: str) -> None:
        self.broken, self.reads = broken, 0
        self.module = SimpleNamespace(
            nvmlInit=lambda: self._check("init"),
            nvmlDeviceGetHandleByIndex=["GPU-a", "GPU-b"].__getitem__,
            nvmlDeviceGetHandleByUUID=str,
            nvmlDeviceGetUUID=lambda gpu: gpu.encode() if gpu == "GPU-b" else gpu,  # old versions return bytes
            nvmlDeviceGetMemoryInfo=self._memory,
            nvmlDeviceGetUtilizationRates=self._utilization,
        )

    def _check(self, name: str) -> None:
        if name in self.broken:
            raise RuntimeError("NVML: Insufficient Permissions")

    def _memory(self, gpu: str) -> Any:
        self._check("memory")
        self.reads += 1
        return SimpleNamespace(used={"GPU-a": 5, "GPU-b": 7, "MIG-c": 3}[gpu] * 2**30)

    def _utilization(self, gpu: str) -> Any:
        if gpu.startswith("MIG"):
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=[90, 70][self.reads // 2 % 2])


@pytest.fixture
def nvml(monkeypatch):
    """Return a function that installs a fake NVML for some visible GPUs, and measures for a moment."""

    def measure(visible: str, *broken: str, seconds: float = 60.0) -> EngineUsage:
        fake = FakeNvml(*broken)
        monkeypatch.setitem(sys.modules, "pynvml", fake.module)
        monkeypatch.setattr(usage, "_INTERVAL", 0.005)
        meter, deadline = UsageMeter(visible), time.monotonic() + 5
        while fake.reads < 20 and not broken and visible and time.monotonic() < deadline:
            time.sleep(0.005)
        return meter.usage(seconds)

    return measure


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("0", {"GPU-a": 5}), ("0,1", {"GPU-a": 5, "GPU-b": 7}), ("GPU-b", {"GPU-b": 7}), (" 1 , MIG-c", None)],
)
def test_visible_gpus_are_measured(visible, gpus, nvml) -> None:
    found = nvml(visible).gpus
    gpus = gpus or {"GPU-b": 7, "MIG-c": 3}
    assert {uuid: gpu.memory for uuid, gpu in found.items()} == {uuid: gib * 2**30 for uuid, gib in gpus.items()}
    for uuid, gpu in found.items():
        assert (gpu.utilization is None) == uuid.startswith("MIG")
        assert gpu.utilization is None or 70 <= gpu.utilization <= 90


def test_the_last_reading_counts_if_none_is_recent(nvml) -> None:
    gpu = nvml("0", seconds=-1).gpus["GPU-a"]
    assert gpu.utilization in (70, 90)


@pytest.mark.parametrize(
    ("visible", "broken"), [("", []), ("0", ["init"]), ("0", ["memory"]), ("7", []), ("0,x-1", ["init"])]
)
def test_what_cannot_be_measured_is_left_out(visible, broken, nvml, monkeypatch) -> None:
    assert nvml(visible, *broken, "memory").gpus == {}
    assert nvml(visible, *broken, "memory").host_memory > 2**20


def test_without_nvml_only_memory_is_measured(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert UsageMeter("0").usage(1.0).gpus == {}


def test_memory_of_processes_that_are_gone_does_not_count() -> None:
    alone = resident_memory([os.getpid()])
    assert alone > 2**20
    assert resident_memory([os.getpid(), 2**22 + 1]) == pytest.approx(alone, rel=0.1)

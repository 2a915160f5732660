"""Liveness of engines, with a clock and a Ray that the test drives."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from esplug.engines import liveness
from esplug.engines.liveness import EngineSlot, LivenessMonitor

TIMEOUT = 600.0


class FakeRay:
    """Time passes while somebody waits. Work is done at its time, and a pulse is answered at once."""

    def __init__(self) -> None:
        self.now, self.killed = 1000.0, list[Any]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        for ref in refs:
            if ref == "pulse" or (ref != "silence" and ref <= self.now + timeout):
                self.now = self.now if ref == "pulse" else max(self.now, ref)
                return [ref], [other for other in refs if other != ref]
        self.now += timeout
        return [], refs


@pytest.fixture
def ray(monkeypatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: fake.now, sleep=fake.sleep))
    monkeypatch.setattr("ray.wait", fake.wait)
    monkeypatch.setattr("ray.get", lambda _: 0.0)  # an engine at rest, or one that makes progress
    monkeypatch.setattr("ray.kill", fake.killed.append)
    return fake


def monitor_of(ray: FakeRay, pulse: str) -> tuple[LivenessMonitor, EngineSlot]:
    slot = EngineSlot(0, Path("log"), heard=ray.now, ready=True)
    slot.actor = SimpleNamespace(pulse=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: pulse)))
    return LivenessMonitor([slot], TIMEOUT), slot


def test_an_engine_that_had_no_work_for_long_is_not_silent(ray) -> None:
    monitor, _ = monitor_of(ray, "pulse")
    began = ray.now
    assert monitor.wait([], lambda: ray.now > began + 2 * TIMEOUT) is None  # the environment's replies take long
    done_at = ray.now + TIMEOUT / 2
    assert monitor.wait([done_at]) == done_at
    assert ray.killed == []


def test_an_engine_that_does_not_answer_is_killed(ray) -> None:
    monitor, slot = monitor_of(ray, "silence")
    monitor.wait([ray.now + 2 * TIMEOUT])
    assert ray.killed[:1] == [slot.actor]
    assert slot.silent_for == TIMEOUT

"""Fault table: a pytest plugin that counts injected faults and prints them at the end of a test session.

A test declares its faults with ``@pytest.mark.fault(name, times, lost)``. All of them count as survived if
it passes, and none if it fails.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

PROPERTY = "fault"


@dataclass
class Count:
    """How often a fault was injected and survived, and the most that it may cost."""

    tried: int = 0
    survived: int = 0
    lost: str = "nothing"


class Tally:
    """pytest plugin that counts the faults of the tests that run."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped:
            for key, value in report.user_properties:
                if key == PROPERTY:
                    name, times, lost = value
                    count = self.counts.setdefault(name, Count(lost=lost))
                    count.tried += times
                    count.survived += times * report.passed


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Tally(), "fault-tally")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.user_properties += [(PROPERTY, fault) for fault in _faults(item)]


def _faults(item: pytest.Item) -> Iterator[tuple[str, int, str]]:
    for mark in item.iter_markers("fault"):
        name, times, *lost = mark.args
        yield name, times, lost[0] if lost else "nothing"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = terminalreporter.config.pluginmanager.get_plugin("fault-tally").counts
    if counts:
        width = max(map(len, counts))
        terminalreporter.section("faults")
        terminalreporter.line(f"{'fault':{width}}    tried  survived  lost")
        for name, count in counts.items():
            terminalreporter.line(f"{name:{width}}  {count.tried:7,}  {count.survived:8,}  {count.lost}")

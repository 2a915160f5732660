"""Checks of loggers by `esplug.testing` and `esplug check`: good ones pass, and each fault fails the right check."""

import time

import pytest

from esplug import hookimpl
from esplug.testing import check_logger, logger_checks
from tests.helpers.plugins import failed


@pytest.mark.parametrize("name", ["console", "jsonl", "none"])
def test_the_built_in_loggers_pass(name) -> None:
    check_logger(name)


class Logger:
    synchronous = True

    @hookimpl
    def start(self, run_dir, iteration):
        self.run_dir = run_dir
        if self.bad == "start" and iteration:
            raise ValueError("cannot go on")
        if self.bad == "slow start" and iteration:
            time.sleep(0.4)

    @hookimpl
    def log(self, metrics):
        if "int" in self.bad:
            [int(value) for value in metrics.values()]
        if self.bad == "slow" and "huge" in metrics:
            time.sleep(0.4)

    @hookimpl
    def samples(self, rows):
        if "samples" in self.bad:
            [row["target"].upper() for row in rows]
        if "astray" in self.bad:
            with open("answers.txt", "w") as file:
                file.write("x")

    @hookimpl
    def finish(self, status):
        if self.bad == "slow finish" and status == "failed":
            time.sleep(0.4)
        if self.bad == "finish" and status != "finished":
            raise SystemExit(status)


ENDS = ["a run that ends as failed", "a run that ends as interrupted"]


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize(
    ("bad", "checks", "words"),
    [
        ("", [], ""),
        ("start", ["a resumed run"], "cannot start [ValueError: cannot go on]"),
        ("int", ["odd metrics"], "failed [ValueError: cannot convert float NaN to integer]"),
        ("samples", ["odd samples"], "failed [AttributeError: 'NoneType'"),
        ("finish", ENDS, "failed [SystemExit: "),
        ("astray", ["files"], "answers.txt written to the working directory"),
    ],
)
def test_a_logger_with_a_fault(bad, checks, words, synchronous) -> None:
    logger = type("Odd", (Logger,), {"bad": bad, "synchronous": synchronous})
    faults = failed(logger_checks(logger))
    assert list(faults) == checks
    assert all(words in fault for fault in faults.values())


def test_samples_are_called_once_per_split() -> None:
    calls: list[list[str]] = []

    class Keeps(Logger):
        bad = ""

        @hookimpl
        def samples(self, rows):
            calls.append(sorted({row["split"] for row in rows}))

    check_logger(Keeps)
    assert {len(splits) for splits in calls} == {1}
    assert ["a/b"] in calls


@pytest.mark.parametrize(
    ("bad", "check"), [("slow", "odd metrics"), ("slow start", "a resumed run"), ("slow finish", ENDS[0])]
)
def test_a_logger_that_delays_the_run(bad, check, monkeypatch) -> None:
    monkeypatch.setattr("esplug.authoring.conformance.loggers._SLOW", 0.3)
    slow, background = (type("Slow", (Logger,), {"bad": bad, "synchronous": each}) for each in (True, False))
    assert "leave out synchronous = True" in failed(logger_checks(slow))[check]
    assert not failed(logger_checks(background))

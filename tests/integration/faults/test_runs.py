"""Whole runs with faults, on real Ray and vLLM with a tiny model; `benchmarks/soak` repeats them many times.

Starting takes most of the time, so one run gets several faults, one after the other.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from esplug.checkpoints.export import export
from tests.helpers.secrets import SECRETS, secrets_in
from tests.integration.faults import mishaps
from tests.integration.faults.harness import PORTS, Desk, Launched, check, done, occupied, reach

pytestmark = pytest.mark.vllm

ITERATIONS = 21


@pytest.fixture(scope="module")
def desk(tiny_model, tmp_path_factory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"), tiny_model)
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def undisturbed(desk) -> Path:
    """The reference run. Another run is active at the same time, and common ports are in use."""
    beside = desk.runs / "beside"
    with occupied() as in_use:
        assert in_use == len(PORTS)
        launched = desk.start(beside, 6)
        run = desk.undisturbed(ITERATIONS)
        assert launched.end() == 0, launched.text
    assert launched.left() == []
    check(beside, run, 6)
    return run


def test_two_runs_at_once_do_not_disturb_each_other(undisturbed) -> None:
    check(undisturbed, undisturbed, ITERATIONS)


def test_engines_that_die_or_hang_are_replaced_until_max_restarts(desk, undisturbed) -> None:
    run, draw = desk.runs / "engines", Random(1)
    limits = ("--engine-timeout", 6, "--max-restarts", 3, "--min-engines", 2)  # so that the run waits for replacements
    launched = desk.start(run, ITERATIONS, *limits, engines=2)
    mishaps.hit_engines(launched, run, ["training"], signal.SIGKILL, draw)
    mishaps.hit_engines(launched, run, ["evaluation"], signal.SIGSTOP, draw)
    assert "died; replacing it (1 of at most 3)" in launched.text
    assert "made no progress for 6 s (--engine-timeout); replacing it (2 of at most 3)" in launched.text
    mishaps.exhaust_engines(launched, 3)
    assert 0 < done(run) < ITERATIONS
    launched = desk.resume(run, "--min-engines", 1)
    assert launched.end() == 0, launched.text
    check(run, undisturbed, ITERATIONS)


def test_a_run_interrupted_several_times_ends_as_without_interruption(desk, undisturbed) -> None:
    run, draw = desk.runs / "interrupted", Random(2)

    def resume(terminal: bool = False) -> Launched:
        return desk.resume(run, terminal=terminal)

    launched = desk.start(run, ITERATIONS, engines=2)
    launched.until(lambda: done(run) >= 4, "iteration 4")
    reach(launched, run, "training", draw)
    assert mishaps.interrupt(launched, signal.SIGKILL)
    (damaged,) = mishaps.damage_run(run, draw, log=False, checkpoints=1)

    launched = resume(terminal=True)
    launched.until(lambda: "resuming at iteration" in launched.text, "the resumption")
    assert mishaps.contend(desk, run, launched.pid) < 20
    reach(launched, run, "training", draw)
    assert f"skipped a checkpoint: {damaged}: " in launched.text.replace("\n", " ")
    launched.type("\x03")
    assert mishaps.ended_by(launched, signal.SIGINT)
    assert launched.terminal_is_sane()
    assert f"to resume: esplug train --resume {run}" in launched.text

    (log,) = mishaps.damage_run(run, draw, log=True, checkpoints=0)
    launched = resume(terminal=True)
    reach(launched, run, "saving", draw)
    assert f"{log}: " in launched.text
    assert mishaps.interrupt(launched, signal.SIGTERM)
    assert launched.terminal_is_sane()

    launched = resume()
    assert launched.end() == 0, launched.text
    desk.nothing_left()
    check(run, undisturbed, ITERATIONS)


def test_no_secret_from_the_environment_is_in_the_outputs_of_runs(desk, undisturbed) -> None:
    exported = export(undisturbed, desk.folder / "exported").folder
    assert (exported / "README.md").exists()
    assert list(undisturbed.glob("logs/engine-*.log"))
    assert secrets_in(desk.folder, SECRETS.values()) == []


def test_a_full_disk_costs_records_but_not_the_run(desk, undisturbed) -> None:
    if mishaps.fill_disk(desk, undisturbed, Random(3), 1) is None:
        pytest.skip("mounting a tmpfs is not permitted here")


def test_overflow_gets_a_label_and_does_not_affect_later_answers(tiny_model, tmp_path) -> None:
    mishaps.overflow(tiny_model, tmp_path, 4)

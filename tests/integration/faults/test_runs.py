"""Whole runs under faults, on real Ray and vLLM with a tiny model: each once; `benchmarks/soak` does it often.

Starting takes most of the time, so that one run meets several faults, one after the other.
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from esplug.checkpoints.export import export
from tests.integration.faults import mishaps
from tests.integration.faults.harness import PORTS, Desk, Launched, check, done, occupied, reach
from tests.integration.faults.test_secrets import SECRETS, secrets_in

pytestmark = pytest.mark.vllm

ITERATIONS = 21


@pytest.fixture(scope="module")
def desk(tiny_model, tmp_path_factory) -> Iterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("desk"), tiny_model)
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def undisturbed(desk) -> Path:
    """A run with which all others are compared; another run at the same time, and common ports taken."""
    beside = desk.runs / "beside"
    with occupied() as taken:
        assert taken == len(PORTS)
        launched = desk.start(beside, 6)
        run = desk.undisturbed(ITERATIONS)
        assert launched.end() == 0, launched.text
    assert launched.left() == []
    check(beside, run, 6)
    return run


def test_two_runs_at_once_do_not_disturb_each_other(undisturbed) -> None:
    check(undisturbed, undisturbed, ITERATIONS)


def test_engines_that_die_or_fall_silent_are_replaced_until_it_is_too_much(desk, undisturbed) -> None:
    run, draw = desk.runs / "engines", Random(1)
    limits = ("--engine-timeout", 6, "--max-restarts", 3)
    launched = desk.start(run, ITERATIONS, *limits, engines=2)
    mishaps.hit_engines(launched, run, ["training"], signal.SIGKILL, draw)
    mishaps.hit_engines(launched, run, ["evaluation"], signal.SIGSTOP, draw)
    assert "died; replacing it (1 of at most 3)" in launched.text
    assert "made no progress for 6 s (--engine-timeout); replacing it (2 of at most 3)" in launched.text
    mishaps.exhaust_engines(launched, 3)
    assert 0 < done(run) < ITERATIONS
    launched = desk.resume(run)
    assert launched.end() == 0, launched.text
    check(run, undisturbed, ITERATIONS)


def test_a_run_that_is_interrupted_again_and_again_ends_as_if_it_had_not_been(desk, undisturbed) -> None:
    run, draw = desk.runs / "interrupted", Random(2)

    def resume(terminal: bool = False) -> Launched:
        return desk.resume(run, terminal=terminal)

    launched = desk.start(run, ITERATIONS, engines=2)
    launched.until(lambda: done(run) >= 4, "iteration 4")
    reach(launched, run, "training", draw)
    assert mishaps.interrupt(launched, signal.SIGKILL)
    (damaged,) = mishaps.damage_run(run, draw, log=False, checkpoints=1)

    launched = resume(terminal=True)
    launched.until(lambda: "going on at iteration" in launched.text, "the resumption")
    assert mishaps.contend(desk, run, launched.pid) < 20
    reach(launched, run, "training", draw)
    assert f"passed over a checkpoint: {damaged}: " in launched.text.replace("\n", " ")
    launched.type("\x03")
    assert mishaps.ended_by(launched, signal.SIGINT)
    assert launched.terminal_is_sane()
    assert f"to go on: esplug train --resume {run}" in launched.text

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


def test_no_secret_of_the_environment_is_in_what_runs_leave(desk, undisturbed) -> None:
    exported = export(undisturbed, desk.folder / "exported").folder
    assert (exported / "README.md").exists()
    assert list(undisturbed.glob("logs/engine-*.log"))
    assert secrets_in(desk.folder, SECRETS.values()) == []


def test_a_full_disk_costs_records_but_not_the_run(desk, undisturbed) -> None:
    if mishaps.fill_disk(desk, undisturbed, Random(3), 1) is None:
        pytest.skip("mounting a tmpfs is not permitted here")


def test_what_overflows_fails_with_a_label_and_leaves_no_trace(tiny_model, tmp_path) -> None:
    mishaps.overflow(tiny_model, tmp_path, 4)

"""Recovery of an interrupted run: damaged files, and two processes that resume at once."""

import functools
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from esplug.checkpoints.folders import periodic_name, save_model
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header, Step
from esplug.es.members import population
from esplug.weights.master import MasterWeights
from tests.integration.faults import mishaps

RUN_SEED, MEMBERS, DAMAGES = 5, 4, 60


@pytest.fixture
def run(tiny_model, tmp_path) -> Path:
    """A run of twelve iterations: its seed log and checkpoints."""
    master, draw, run = MasterWeights.load(tiny_model), Random(1), tmp_path / "run"
    run.mkdir()
    base = Base(str(tiny_model), None, master.checksum())
    with SeedLog.create(run / "seeds.log", Header(base, "float32", RUN_SEED)) as log:
        for iteration in range(12):
            seeds = [member.seed for member in population(RUN_SEED, iteration, MEMBERS, antithetic=False)]
            coefficients = tuple(draw.uniform(-0.1, 0.1) for _ in seeds)
            master.update(seeds, coefficients)
            log.append(Step(iteration, coefficients, False, master.checksum()))
            if iteration in (9, 11):
                target = run / "checkpoints" / periodic_name(iteration + 1)
                save_model(functools.partial(master.save, exact=True), tiny_model, target)
    return run


@pytest.mark.fault(
    "one flipped byte or a truncation, then caught up with", DAMAGES, "of a log, what follows: made again"
)
def test_damage_to_a_checkpoint_or_log_is_noticed_and_the_weights_are_the_same(run, tiny_model, tmp_path) -> None:
    draw, lost = Random(2), Counter[str]()
    for _ in range(DAMAGES):
        lost += mishaps.catch_up_damaged(run, tiny_model, tmp_path, draw)
    assert len(lost) == 2, f"nothing has happened to the log, or not to its header: {lost}"


@pytest.mark.fault("two processes, one directory", 5)
def test_one_of_two_processes_locks_the_directory_and_the_other_names_it(tmp_path) -> None:
    for _ in range(5):
        mishaps.race_for_lock(tmp_path)

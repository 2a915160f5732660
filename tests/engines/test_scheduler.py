"""Work scheduler: every piece is done once, weights are switched rarely, engines help at the end if that is faster."""

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.engines.scheduler import Piece, WorkScheduler


def simulate(
    pieces: list[int],
    engines: int,
    seconds: Callable[[int, int], float],
    switch: float = 1.0,
    dies: Callable[[int], bool] = lambda attempt: False,
) -> tuple[float, list[tuple[int, int, int]], int]:
    """Drive a scheduler with simulated time. Returns the end time, (engine, job, piece) in order, and the switches."""
    schedule = WorkScheduler(enumerate(pieces), lambda job: job[1])
    events: list[tuple[float, int, int, Piece]] = []
    holds: dict[int, int] = {}
    idle, now, done, switches, attempts = set(range(engines)), 0.0, [], 0, 0

    def hand_out() -> None:
        nonlocal switches
        for engine in sorted(idle):
            if (piece := schedule.take(engine)) is not None:
                idle.remove(engine)
                job = piece.job[0]
                needs = holds.get(engine) != job
                switches += needs
                holds[engine] = job
                costs = switch * needs, seconds(job, piece.number)
                schedule_costs[engine] = costs
                heapq.heappush(events, (now + sum(costs), engine, len(done), piece))

    schedule_costs: dict[int, tuple[float, float]] = {}
    hand_out()
    while events:
        now, engine, _, piece = heapq.heappop(events)
        idle.add(engine)
        attempts += 1
        if dies(attempts):
            holds.pop(engine)
            schedule.requeue(engine, piece)
        else:
            schedule.done(*schedule_costs[engine])
            done.append((engine, piece.job[0], piece.number))
        hand_out()
    return now, done, switches


PIECES = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@given(PIECES, st.integers(1, 8), st.integers(0, 2**32), st.floats(0, 5))
def test_every_piece_is_done_once_whoever_dies(pieces, engines, seed, switch) -> None:
    draw = random.Random(seed)
    fatal = {draw.randrange(1, 40) for _ in range(5)}
    _, done, _ = simulate(pieces, engines, lambda *_: draw.random() + 0.01, switch, lambda attempt: attempt in fatal)
    assert Counter((job, number) for _, job, number in done) == Counter(
        (job, number) for job, count in enumerate(pieces) for number in range(count)
    )


@given(PIECES)
def test_one_engine_does_job_after_job(pieces) -> None:
    _, done, switches = simulate(pieces, 1, lambda *_: 1.0)
    assert [(job, number) for _, job, number in done] == [
        (j, n) for j, count in enumerate(pieces) for n in range(count)
    ]
    assert switches == len(pieces)


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.1, 3))
def test_no_engine_helps_if_jobs_divide_evenly(engines, rounds, switch) -> None:
    _, done, switches = simulate([4] * engines * rounds, engines, lambda *_: 1.0, switch)
    assert switches == engines * rounds
    assert len({(engine, job) for engine, job, _ in done}) == switches


@pytest.mark.parametrize(("switch", "end"), [(0.1, 5.2), (1.0, 6.0), (9.0, 17.0)])
def test_the_last_job_is_shared_if_that_is_faster(switch, end) -> None:
    """Two engines have one job of eight pieces left."""
    first, done, _ = simulate([1, 8], 2, lambda *_: 1.0, switch)
    alone = switch + 8.0
    assert first <= alone
    assert first == pytest.approx(end, abs=0.6)
    assert len({engine for engine, job, _ in done if job == 1}) == (2 if first < alone else 1)


@given(PIECES, st.integers(1, 8), st.floats(0, 3))
def test_helping_never_makes_it_much_later(pieces, engines, switch) -> None:
    helped, _, _ = simulate(pieces, engines, lambda *_: 1.0, switch)
    free = [0.0] * engines
    for count in pieces:  # the same without help: each job on the engine that is free first
        heapq.heapreplace(free, free[0] + switch + count)
    assert helped <= max(free) + 1e-9 + 1.0


def test_64_engines_are_busy_with_256_members_whose_answers_are_those_of_a_real_run() -> None:
    from benchmarks.scaling.__main__ import RECORD, Answers, barrier, ours

    answers, draw = Answers.read(RECORD), random.Random(0)
    members = [answers.draw(draw, 512) for _ in range(256)]
    ideal = sum(answers.switch + answers.seconds(row) for row in members) / 64
    assert ideal / ours(answers, members, 64, 128) > 0.95
    assert ours(answers, members[:30], 8, 128) < 0.97 * barrier(answers, members[:30], 8)


def test_an_engine_can_wait_for_what_follows_but_takes_what_is_ready() -> None:
    schedule = WorkScheduler(["first", "second", "third"], lambda job: 2 if job == "first" else 1)
    one, other = schedule.take(0), schedule.take(0)
    assert (one.job, other.job) == ("first", "first")
    assert schedule.take(0, [one]) is None
    assert schedule.take(1, [one]).job == "second"  # an engine with other weights does not wait
    schedule.add("reply", one)
    assert schedule.take(0, [other]).job == "reply"
    assert schedule.take(0).job == "third"  # it does not wait any longer
    schedule.add("late reply", other)
    assert schedule.take(1).job == "late reply"

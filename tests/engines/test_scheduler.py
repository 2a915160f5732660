"""Work scheduler: every piece is done once, weights are switched rarely, engines help at the end if that is faster."""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.engines.pace import LEAST
from esplug.engines.scheduler import Piece, WorkScheduler


@dataclass
class Simulated:
    """What happened: the end time, (engine, job, piece) in the order of the first answers, switches and copies."""

    end: float = 0.0
    done: list[tuple[int, int, int]] = field(default_factory=list)
    switches: int = 0
    copies: list[tuple[float, int, int]] = field(default_factory=list)  # time, engine, engine that was late

    def __iter__(self) -> Iterator[Any]:
        return iter((self.end, self.done, self.switches))


def simulate(
    pieces: list[int],
    engines: int,
    seconds: Callable[[int, int], float],
    switch: float = 1.0,
    dies: Callable[[int], bool] = lambda attempt: False,
    slowness: Callable[[int], float] = lambda engine: 1.0,
) -> Simulated:
    """Drive a scheduler with simulated time, until all pieces are answered."""
    schedule = WorkScheduler(enumerate(pieces), lambda job: job[1])
    events: list[tuple[float, int, int, Piece | None]] = []  # a look for late pieces is of engine -1
    holds: dict[int, int] = {}
    idle, result, now, attempts = set(range(engines)), Simulated(), 0.0, 0
    costs: dict[int, tuple[float, float]] = {}
    began: dict[int, float] = {}  # of engines whose work counts

    def give(engine: int, piece: Piece) -> None:
        idle.remove(engine)
        job = piece.job[0]
        needs = holds.get(engine) != job
        result.switches += needs
        holds[engine], began[engine] = job, now
        costs[engine] = slowness(engine) * switch * needs, slowness(engine) * seconds(job, piece.number)
        heapq.heappush(events, (now + sum(costs[engine]), engine, len(events), piece))

    def hand_out() -> None:
        for engine in sorted(idle):
            if (piece := schedule.take(engine)) is not None:
                give(engine, piece)
        while idle and began:
            wait, engine, other = schedule.late(sorted(idle), {each: now - since for each, since in began.items()})
            if wait > 0:
                if wait < math.inf:
                    heapq.heappush(events, (now + wait + 1e-9, -1, len(events), None))
                return
            result.copies.append((now, engine, other))
            give(engine, schedule.back_up(engine, other))

    hand_out()
    while began:
        now, engine, _, piece = heapq.heappop(events)
        if piece is None:
            hand_out()
            continue
        idle.add(engine)
        attempts += 1
        if engine not in began:  # nobody waited for it
            pass
        elif dies(attempts):
            holds.pop(engine)
            del began[engine]
            schedule.requeue(engine)
        else:
            for late in [engine, *schedule.done(engine, *costs[engine])]:
                del began[late]
            result.done.append((engine, piece.job[0], piece.number))
        hand_out()
    result.end = now
    return result


PIECES = st.lists(st.integers(1, 6), min_size=1, max_size=12)


@given(PIECES, st.integers(1, 8), st.integers(0, 2**32), st.floats(0, 5), st.floats(1, 20))
def test_every_piece_is_done_once_whoever_dies_or_is_slow(pieces, engines, seed, switch, slow) -> None:
    draw = random.Random(seed)
    fatal = {draw.randrange(1, 40) for _ in range(5)}
    _, done, _ = simulate(
        pieces,
        engines,
        lambda *_: draw.random() + 0.01,
        switch,
        lambda attempt: attempt in fatal,
        lambda engine: slow if draw.random() < 0.3 else 1.0,
    )
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


@given(PIECES, st.integers(1, 8), st.floats(0, 20), st.floats(0.1, 100), st.floats(0.6, 1), st.integers(0, 2**32))
def test_engines_of_equal_speed_do_nothing_twice(pieces, engines, switch, seconds, last, seed) -> None:
    """Times differ by 10 percent, and the last piece of several of a job is shorter.

    If it were much shorter, an engine that has done no other would expect as little of the others.
    """
    draw = random.Random(seed)

    def piece(job: int, number: int) -> float:
        return seconds * draw.uniform(0.9, 1.0) * (last if 0 < number == pieces[job] - 1 else 1.0)

    assert not simulate(pieces, engines, piece, switch).copies


@given(
    st.integers(3, 12), st.integers(1, 4), st.integers(1, 7), st.floats(0.5, 60), st.floats(0, 1), st.floats(10, 1000)
)
def test_a_slow_engine_costs_at_most_a_piece(rounds, pieces, fast, seconds, switch, slow) -> None:
    """The others have at least three jobs each. They then know how long a piece takes when they are done."""
    jobs, piece, switching = [pieces] * rounds * fast, lambda *_: seconds, seconds * switch
    without = simulate(jobs, fast, piece, switching).end
    found = simulate(jobs, fast + 1, piece, switching, slowness=lambda engine: slow if engine == 0 else 1.0)
    assert found.end <= without + seconds + switching + LEAST + 1e-6
    assert len(found.copies) <= pieces  # those of the job that the slow engine has at the end


@pytest.mark.parametrize("fast", [1, 3])
def test_a_slow_engine_costs_at_most_two_pieces_if_each_has_but_one(fast) -> None:
    found = simulate([1] * (fast + 1), fast + 1, lambda *_: 5.0, 1.0, slowness=lambda engine: 10 if engine == 0 else 1)
    assert (found.end, len(found.copies)) == (pytest.approx(3 * 6.0), 1)


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

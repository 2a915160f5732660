"""Faults that the soak benchmark injects into real runs, and the checks after each.

A fault is a function that yields attempts. An attempt raises if a run, or its resumption, does not end with the
checksums, records and metrics of the undisturbed run, or leaves a process behind.
"""

import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from esplug.checkpoints import seed_log
from tests.integration.faults import lost_nodes, mishaps
from tests.integration.faults.harness import Desk, check, done, lost, occupied, reach
from tests.integration.faults.mishaps import interrupt

#: Number of faults in an attempt, and the function that injects them and returns what was lost.
Attempt = tuple[int, Callable[[], Counter[str]]]
ON_NODES = 99  # iterations of a run on several nodes, which must be long enough for their faults
RECOMPUTED = "rows computed again"


@dataclass
class Bench:
    """Run directories, the undisturbed run and the random generator that all attempts of a fault share."""

    desk: Desk
    undisturbed: Path
    draw: Random

    def run(self, name: str) -> Path:
        """Return the directory of a new run."""
        number = len(list(self.desk.runs.glob(f"{name}-*")))
        return self.desk.runs / f"{name}-{number}"


# --- engines ---------------------------------------------------------------------------------------------------


def engine_sigkill(bench: Bench, times: int) -> Iterator[Attempt]:
    for number in range(0, times, 5):
        phases = ["start", "training", "both", ("evaluation", "saving")[number // 5 % 2]]
        yield 5, lambda phases=phases: _hit_engines(bench, "engine-sigkill", phases, signal.SIGKILL)


def engine_sigstop(bench: Bench, times: int) -> Iterator[Attempt]:
    for _ in range(0, times, 5):
        phases = ["training", "both", "evaluation", "saving"]
        yield 5, lambda phases=phases: _hit_engines(bench, "engine-sigstop", phases, signal.SIGSTOP)


def _hit_engines(bench: Bench, name: str, phases: list[str], number: int) -> Counter[str]:
    run, iterations = bench.run(name), 6 * len(phases) + 6
    limits = ("--engine-timeout", 6, "--max-restarts", 100, "--min-engines", 2)
    launched = bench.desk.start(run, iterations, *limits, engines=2)
    mishaps.hit_engines(launched, run, phases, number, bench.draw)
    assert launched.end() == 0, launched.text
    assert launched.left() == []
    check(run, bench.undisturbed, iterations)
    return Counter({RECOMPUTED: lost(run)})


def engines_dying_again(bench: Bench, times: int) -> Iterator[Attempt]:
    def attempt(number: int) -> Counter[str]:
        run, iterations = bench.run("engines-dying"), 9
        launched = bench.desk.start(run, iterations, "--max-restarts", 3, engines=1 + number % 2)
        if number:
            launched.until(lambda: done(run) >= number, "an iteration")
        mishaps.exhaust_engines(launched, 3)
        launched = bench.desk.resume(run)
        assert launched.end() == 0, launched.text
        check(run, bench.undisturbed, iterations)
        return Counter({RECOMPUTED: lost(run)})

    for number in range(times):
        yield 1, lambda number=number: attempt(number)


# --- the driver ------------------------------------------------------------------------------------------------

STOPPING = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
PHASES = ("training", "start", "evaluation", "training", "saving")


def driver_sigint(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: _interrupt_again(bench, "driver-sigint", signal.SIGINT, times)


def driver_sigint_twice(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: _interrupt_again(bench, "driver-sigint-twice", signal.SIGINT, times, twice=True)


def driver_sigterm(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: _interrupt_again(bench, "driver-sigterm", signal.SIGTERM, times)


def driver_sigkill(bench: Bench, times: int) -> Iterator[Attempt]:
    for first in range(0, times, 10):
        hits = min(10, times - first)
        yield hits, lambda hits=hits: _interrupt_again(bench, "driver-sigkill", signal.SIGKILL, hits)


def _interrupt_again(bench: Bench, name: str, number: int, times: int, *, twice: bool = False) -> Counter[str]:
    """Interrupt and resume one run several times. Runs on a terminal for SIGINT, to check that it is left sane."""
    run, iterations, terminal = bench.run(name), 3 * times + 6, number == signal.SIGINT
    launched = bench.desk.start(run, iterations, engines=2, terminal=terminal)
    for hit in range(times):
        phase = "end" if hit == times - 1 else PHASES[hit % len(PHASES)]
        reach(launched, run, phase, bench.draw)
        if interrupt(launched, number, twice=twice):
            assert not terminal or launched.terminal_is_sane(), launched.raw[-300:]
            launched = bench.desk.resume(run, terminal=terminal)
    code, complete = (
        launched.end(),
        f"{iterations} iterations are done" in launched.text,
    )  # the last signal may come while the run closes
    assert code == 0 or (code == 2 and complete), launched.text
    bench.desk.nothing_left()
    check(run, bench.undisturbed, iterations)
    return Counter({RECOMPUTED: lost(run)})


def on_a_cluster(bench: Bench, times: int) -> Iterator[Attempt]:
    """Stop the driver of a run on a Ray cluster, and check that the cluster gets all its processors back."""

    def attempt() -> Counter[str]:
        with mishaps.ray_cluster(bench.desk) as address:
            run, iterations = bench.run("cluster"), 3 * times + 6
            launched = bench.desk.start(run, iterations, "--ray-address", address, engines=2)
            for number in itertools.islice(itertools.cycle(STOPPING), times):
                reach(launched, run, "training", bench.draw)
                assert interrupt(launched, number), launched.text
                mishaps.all_given_back(address)
                launched = bench.desk.resume(run, engines=2)
            assert launched.end() == 0, launched.text
            mishaps.all_given_back(address)
        check(run, bench.undisturbed, iterations)
        return Counter({RECOMPUTED: lost(run)})

    yield times, attempt


# --- nodes of a cluster ----------------------------------------------------------------------------------------


def node_sigkill(bench: Bench, times: int) -> Iterator[Attempt]:
    """Kill nodes with all their processes, and add others."""
    moments = ["training", "updating", "evaluation", "saving"]

    def attempt(phases: list[str]) -> Counter[str]:
        run = bench.run("node-sigkill")
        with lost_nodes.nodes_of(bench.desk, 2) as nodes:
            launched = bench.desk.start(run, ON_NODES, "--ray-address", nodes.address, engines=2)
            lost_nodes.kill_nodes(nodes, launched, run, phases, bench.draw)
            assert launched.end() == 0, launched.text
        check(run, bench.undisturbed, ON_NODES)
        return Counter({RECOMPUTED: lost(run)})

    for first in range(0, times, 4):
        phases = moments[: times - first]
        yield len(phases), lambda phases=phases: attempt(phases)


def head_lost(bench: Bench, times: int) -> Iterator[Attempt]:
    """Kill the head's node, and resume on a new cluster."""

    def attempt() -> Counter[str]:
        run, iterations = bench.run("head"), 12
        with lost_nodes.nodes_of(bench.desk, 2) as nodes:
            launched = bench.desk.start(run, iterations, "--ray-address", nodes.address, engines=2)
            launched.until(lambda: done(run) >= 2, "iteration 2")
            nodes.kill(1)
            began = time.monotonic()
            assert launched.end(150), launched.text
            seconds = time.monotonic() - began
        with lost_nodes.nodes_of(bench.desk, 2) as nodes:
            (run / "go").touch()
            launched = bench.desk.resume(run, "--ray-address", nodes.address, engines=2)
            assert launched.end() == 0, launched.text
        check(run, bench.undisturbed, iterations)
        return Counter({RECOMPUTED: lost(run), "s until the run ended": round(seconds)})

    yield from [(1, attempt)] * times


def partition(bench: Bench, times: int) -> Iterator[Attempt]:
    """Stop a node's raylet, with Ray's own limits of time."""

    def attempt() -> Counter[str]:
        run = bench.run("partition")
        with lost_nodes.nodes_of(bench.desk, 2, watchful=False) as nodes:
            launched = bench.desk.start(run, ON_NODES, "--ray-address", nodes.address, engines=2)
            seconds = lost_nodes.cut_off(nodes, launched, run)
            assert seconds < 120, launched.text
            assert launched.end() == 0, launched.text
        check(run, bench.undisturbed, ON_NODES)
        return Counter({RECOMPUTED: lost(run), "s until it was noticed": round(seconds)})

    yield from [(1, attempt)] * times


# --- weights and rewards ---------------------------------------------------------------------------------------


def nan_weights(bench: Bench, times: int) -> Iterator[Attempt]:
    yield times, lambda: mishaps.overflow(bench.desk.model, bench.desk.folder / "nan", times)


def rewards_equal(bench: Bench, times: int) -> Iterator[Attempt]:
    def attempt() -> Counter[str]:
        run = bench.run("rewards-equal")
        launched = bench.desk.start(run, times, "--task-option", "equal=true")
        assert launched.end() == 0, launched.text
        assert launched.text.count("every utility is zero (all rewards equal?), so no update") == times, launched.text
        log = seed_log.read(run / "seeds.log")
        assert [step.checksum for step in log.steps] == [log.header.base.weights_checksum] * times
        return Counter()

    yield times, attempt


def checksums_differ(bench: Bench, times: int) -> Iterator[Attempt]:
    for number in range(times):
        yield 1, lambda number=number: mishaps.disagree(bench.desk.model, bench.desk.folder / f"disagree-{number}")


# --- disks and files -------------------------------------------------------------------------------------------


def disk_full(bench: Bench, times: int) -> Iterator[Attempt]:
    """Fill the disk. In nine of ten attempts space is freed again before the run ends."""
    brief = times - (times + 9) // 10

    def attempt(brief: int) -> Counter[str]:
        found = mishaps.fill_disk(bench.desk, bench.undisturbed, bench.draw, brief)
        assert found is not None, "no disk can be mounted here"
        return found

    if brief:
        yield brief, lambda: attempt(brief)
    for _ in range(times - brief):
        yield 1, lambda: attempt(0)


def damage(bench: Bench, times: int) -> Iterator[Attempt]:
    """Damage checkpoints and logs. An engine's catch-up reads most of them, a whole resumed run the others."""
    whole = max(1, times // 70)
    for _ in range(times - whole):
        yield 1, lambda: mishaps.catch_up_damaged(bench.undisturbed, bench.desk.model, bench.desk.folder, bench.draw)
    for number in range(whole):
        yield 1, lambda number=number: _resume_damaged(bench, number)


def _resume_damaged(bench: Bench, number: int) -> Counter[str]:
    run, iterations = bench.run("damage"), 9
    launched = bench.desk.start(run, iterations)
    launched.until(lambda: done(run) >= 6, "iteration 6")
    interrupt(launched, signal.SIGKILL)
    named = mishaps.damage_run(run, bench.draw, log=number % 3 == 1, checkpoints=1 + number % 3 // 2)
    launched = bench.desk.resume(run)
    assert launched.end() == 0, launched.text
    for path in named:
        assert str(path) in launched.text, f"no message names {path}\n{launched.text}"
    check(run, bench.undisturbed, iterations)
    return Counter({RECOMPUTED: lost(run)})


# --- several runs ----------------------------------------------------------------------------------------------


def one_directory(bench: Bench, times: int) -> Iterator[Attempt]:
    for _ in range(times - 2):
        yield 1, lambda: mishaps.race_for_lock(bench.desk.folder)
    yield 1, lambda: _race(bench, resumed=True)
    yield 1, lambda: _race(bench, resumed=False)


def _race(bench: Bench, *, resumed: bool) -> Counter[str]:
    run, iterations = bench.run("race"), 6
    if resumed:
        launched = bench.desk.start(run, iterations)
        launched.until(lambda: done(run) >= 2, "iteration 2")
        interrupt(launched, signal.SIGKILL)
    both = [bench.desk.resume(run) if resumed else bench.desk.start(run, iterations) for _ in range(2)]
    codes = [launched.end() for launched in both]
    assert sorted(codes) == [0, 2], "\n".join(launched.text for launched in both)
    (loser,) = [launched for launched in both if launched.end() == 2]
    (winner,) = [launched for launched in both if launched.end() == 0]
    mishaps.owner_is_named(loser.text, winner.pid)
    check(run, bench.undisturbed, iterations)
    return Counter()


def pairs(bench: Bench, times: int) -> Iterator[Attempt]:
    def attempt() -> Counter[str]:
        with occupied():
            names = [bench.run(f"pair-{half}") for half in ("a", "b")]
            both = [(run, bench.desk.start(run, 6)) for run in names]
            for run, launched in both:
                assert launched.end(300) == 0, launched.text
                assert launched.left() == []
                check(run, bench.undisturbed, 6)
        return Counter()

    yield from [(1, attempt)] * times


FAULTS: dict[str, tuple[str, int, Callable[[Bench, int], Iterator[Attempt]]]] = {
    "engine-sigkill": ("engine SIGKILL at random moments", 20, engine_sigkill),
    "engine-sigstop": ("engine SIGSTOP", 5, engine_sigstop),
    "engines-dying": ("all engines dying again and again", 3, engines_dying_again),
    "driver-sigint": ("driver SIGINT, resumed", 10, driver_sigint),
    "driver-sigint-twice": ("driver SIGINT twice, resumed", 3, driver_sigint_twice),
    "driver-sigterm": ("driver SIGTERM, resumed", 10, driver_sigterm),
    "driver-sigkill": ("driver SIGKILL, resumed", 20, driver_sigkill),
    "cluster": ("driver stopped on a Ray cluster, resumed", 6, on_a_cluster),
    "node-sigkill": ("node SIGKILL in a generation, update, evaluation and save", 8, node_sigkill),
    "head": ("head's node lost, resumed on a new cluster", 2, head_lost),
    "partition": ("raylet SIGSTOP", 2, partition),
    "nan": ("a member with NaN weights", 10, nan_weights),
    "equal": ("all rewards equal", 10, rewards_equal),
    "disk": ("disk full while writing", 20, disk_full),
    "damage": ("truncation or one flipped byte in a checkpoint or log", 200, damage),
    "directory": ("two runs, one directory", 20, one_directory),
    "pairs": ("two runs at once, common ports taken", 10, pairs),
    "checksum": ("engines whose checksums differ", 2, checksums_differ),
}

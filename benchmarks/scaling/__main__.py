r"""Scaling benchmark: the real scheduler on simulated clocks, and the real driver with stand-in engines.

    python -m benchmarks.scaling                 # both tables
    python -m benchmarks.scaling --record RUN    # take answer lengths and times from a run's directory

``simulate`` runs :class:`esplug.engines.scheduler.WorkScheduler`, which hands out the work in every run, on a
discrete-event clock. A simulated member's answer lengths are drawn with replacement from those of one member of a real
run. Its answers take ``a + b * longest + c * tokens`` seconds, fitted to that run. Efficiency is the time that n
engines would need without ever waiting, with each member's weights written once and its batch answered whole, divided
by the time that they take. ``reference`` gives n members to n engines and waits for the slowest.

``drive`` measures the driver's own cost. A few processes stand in for up to 512 engines and answer at once. The cost
includes handing out work, Ray, and collecting the answers, but no grading.
"""

import argparse
import heapq
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.shared.machine import processor
from esplug.checkpoints.history import CatchUp, CaughtUp, History
from esplug.engines import EnginePool, Job
from esplug.engines.messages import Completion, EngineSettings, Generation, Sampling, Weights, Work
from esplug.engines.scheduler import WorkScheduler
from esplug.planning.placement import Plan

RECORD = Path(__file__).parent / "answers.json"
PROMPTS = 512


@dataclass(frozen=True)
class Answers:
    """Answers of a real run: lengths in tokens of each member's, seconds of a switch, and the fitted seconds."""

    lengths: list[list[int]]
    switch: float
    fit: tuple[float, float, float]

    @classmethod
    def read(cls, path: Path) -> "Answers":
        content = json.loads(path.read_text())
        lengths, seconds = content["tokens"], np.array(content["seconds"])
        known = np.array([[1.0, max(row), sum(row)] for row in lengths])
        found, *_ = np.linalg.lstsq(known, seconds, rcond=None)
        if (found < 0).any():  # members are too alike to fit all three: time depends on tokens alone
            found = np.array([0.0, 0.0, seconds.sum() / known[:, 2].sum()])
        return cls(lengths, float(np.mean(content["switch"])), tuple(map(float, found)))

    def draw(self, random: Random, prompts: int) -> list[int]:
        return random.choices(random.choice(self.lengths), k=prompts)

    def seconds(self, lengths: Sequence[int]) -> float:
        a, b, c = self.fit
        return a + b * max(lengths) + c * sum(lengths)


def record(run: Path, path: Path) -> None:
    """Write the figures of a run that :class:`Answers` reads."""
    members = [
        member
        for file in sorted(run.glob("train-output/iteration*.json"))
        for member in json.loads(file.read_text())["members"]
    ]
    path.parent.mkdir(exist_ok=True)
    content = {
        "tokens": [member["tokens"] for member in members],
        "seconds": [round(member["generate_seconds"], 4) for member in members],
        "switch": [round(member["switch_seconds"], 4) for member in members],
    }
    path.write_text(json.dumps(content) + "\n")


def ours(answers: Answers, members: Sequence[Sequence[int]], engines: int, mini_batch: int) -> float:
    """Return when esplug's schedule finishes the last member, in seconds."""
    pieces = [[answers.seconds(row[at : at + mini_batch]) for at in range(0, len(row), mini_batch)] for row in members]
    schedule = WorkScheduler(range(len(pieces)), lambda job: len(pieces[job]))
    holds: dict[int, int] = {}
    events: list[tuple[float, int]] = []
    spent: dict[int, tuple[float, float]] = {}
    idle, now = list(range(engines)), 0.0
    while True:
        still = []
        for engine in idle:
            piece = schedule.take(engine)
            if piece is None:
                still.append(engine)
                continue
            spent[engine] = answers.switch * (holds.get(engine) != piece.job), pieces[piece.job][piece.number]
            holds[engine] = piece.job
            heapq.heappush(events, (now + sum(spent[engine]), engine))
        idle = still
        if not events:
            return now
        now, engine = heapq.heappop(events)
        schedule.done(*spent[engine])
        idle.append(engine)


def barrier(answers: Answers, members: Sequence[Sequence[int]], engines: int) -> float:
    """Return when the reference's schedule finishes: groups of n members, each as slow as its slowest member."""
    each = [answers.switch + answers.seconds(row) for row in members]
    return sum(max(each[first : first + engines]) for first in range(0, len(each), engines))


def simulate(answers: Answers, draws: int, seed: int) -> None:
    print(f"\nefficiency, {PROMPTS} prompts a member, mean of {draws} draws\n")
    print("| members | engines | reference | whole batches | mini-batches of 128 | of 32 |\n|---|---|---|---|---|---|")
    random = Random(seed)
    for population in (30, 256, 1024, 4096):
        for engines in (1, 8, 64, 128, 512):
            found = []
            for _ in range(draws):
                members = [answers.draw(random, PROMPTS) for _ in range(population)]
                ideal = sum(answers.switch + answers.seconds(row) for row in members) / engines
                times = [barrier(answers, members, engines)]
                times += [ours(answers, members, engines, size) for size in (PROMPTS, 128, 32)]
                found.append([ideal / spent for spent in times])
            print(
                f"| {population} | {engines} | {' | '.join(f'{x:.1%}' for x in np.mean(found, axis=0))} |", flush=True
            )


class StandIn:
    """Actor that stands in for an engine and answers at once."""

    def __init__(self, log_path: str) -> None:
        self._texts = [Completion("<answer>1+2</answer>", 40, True)] * PROMPTS

    def location(self) -> tuple[str, int]:
        return "here", 2**30

    def pulse(self) -> float:
        return 0.0

    def start(self, settings: Any, share: Any, most: Any, cache: Any, catch_up: CatchUp) -> CaughtUp:
        return CaughtUp(1, 1)

    def generate(self, weights: Sequence[Weights], prompts: Any, seeds: Any, sampling: Sampling) -> list[Generation]:
        return [Generation(self._texts[: len(prompts)], (Work(-1, 0.0, 0.1, 1.0),))]

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        return 1


class StandInPool(EnginePool):
    """Pool of many engines, which few processes stand in for."""

    processes = 4

    def _spawn(self, slot: Any) -> None:
        import ray

        if slot.index < self.processes:
            few = self.plan.n_engines // self.processes + 1
            made = ray.remote(concurrency_groups={"pulse": 1})(StandIn)
            slot.actor = made.options(num_cpus=0, max_concurrency=few).remote("")
        else:
            slot.actor = self._slots[slot.index % self.processes].actor
        slot.reset()


def drive(engines: Sequence[int]) -> None:
    import ray

    ray.init(address="local", num_cpus=1024, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print(f"\ndriver, {PROMPTS} prompts a member of 100 tokens each\n")
    print("| engines | members | processor time a member | elapsed time a member |\n|---|---|---|---|")
    settings = EngineSettings("", "auto", "float32", "auto", "cpu", 1, None, 0.5)
    for count in engines:
        pool = StandInPool(Plan(count, "cpu", 0, 1), settings, 0, Path("/nonexistent"))
        pool.start(History(1))
        population = max(1024, 2 * count)
        prompts = [[7] * 100 for _ in range(PROMPTS)]
        for measured in (False, True):
            began, busy = time.perf_counter(), time.process_time()
            members = sum(1 for _ in pool.run(_jobs(population, prompts)))
            elapsed, spent = time.perf_counter() - began, time.process_time() - busy
            if measured:
                print(f"| {count} | {members} | {spent / members * 1e3:.2f} ms | {elapsed / members * 1e3:.2f} ms |")
        pool.close()
    ray.shutdown()


def _jobs(population: int, prompts: list[list[int]]) -> Iterator[Job[int]]:
    seeds = list(range(PROMPTS))
    return (Job([i], [Weights(i, 1e-3)], prompts, seeds, Sampling(48), PROMPTS) for i in range(population))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--record", type=Path, metavar="RUN", help="take answer lengths and times from a run's directory"
    )
    parser.add_argument("--draws", type=int, default=5, help="draws to average  [default: 5]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["simulate", "drive"], help="print one of the tables")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 512])
    arguments = parser.parse_args()
    if arguments.record:
        return record(arguments.record, RECORD)
    print(f"{processor()}, {os.cpu_count()} cores, python {platform.python_version()}")
    if arguments.only != "drive":
        simulate(Answers.read(RECORD), arguments.draws, arguments.seed)
    if arguments.only != "simulate":
        drive(arguments.engines)


if __name__ == "__main__":
    main()

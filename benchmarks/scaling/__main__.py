r"""Scaling benchmark: the real scheduler on simulated clocks, and the real driver with stand-in engines.

    python -m benchmarks.scaling                 # all tables
    python -m benchmarks.scaling --record RUN    # take answer lengths and times from a run's directory

``simulate`` runs :class:`esplug.engines.scheduler.WorkScheduler`, which hands out the work in every run, on a
discrete-event clock. A simulated member's answer lengths are drawn with replacement from those of one member of a real
run. Its answers take ``a + b * longest + c * tokens`` seconds, fitted to that run. Efficiency is the time that n
engines would need without ever waiting, with each member's weights written once and its batch answered whole, divided
by the time that they take. ``reference`` gives n members to n engines and waits for the slowest.

``drive`` measures the driver's own cost on several Ray nodes, which share this machine. A process on each stands in for
up to 512 engines, which answer at once. The cost includes handing out work, Ray, and collecting the answers, but no
grading. ``grade`` has answers graded here and on those nodes, by a reward that waits, so that the machine's cores do
not matter.
"""

import argparse
import heapq
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

from benchmarks.scaling.driver import PROMPTS, drive, grade
from benchmarks.shared.machine import processor
from esplug.engines.scheduler import WorkScheduler

RECORD = Path(__file__).parent / "answers.json"


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
        schedule.done(engine, *spent[engine])
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--record", type=Path, metavar="RUN", help="take answer lengths and times from a run's directory"
    )
    parser.add_argument("--draws", type=int, default=5, help="draws to average  [default: 5]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["simulate", "drive", "grade"], help="print one of the tables")
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 16, 64], help="graders on other nodes")
    arguments = parser.parse_args()
    if arguments.record:
        return record(arguments.record, RECORD)
    print(f"{processor()}, {os.cpu_count()} cores, python {platform.python_version()}")
    if arguments.only in (None, "simulate"):
        simulate(Answers.read(RECORD), arguments.draws, arguments.seed)
    if arguments.only in (None, "drive"):
        drive(arguments.engines, arguments.nodes)
    if arguments.only in (None, "grade"):
        grade(arguments.workers, arguments.nodes)


if __name__ == "__main__":
    main()

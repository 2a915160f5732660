r"""Slow rewards: how long an engine waits for rewards that a server gives.

    python -m benchmarks.iteration.slow_rewards

Rewards of the task ``judge`` come from a local server that replies after a fixed time. A timer stands in for the
engine: it takes the same time for each of 8 members, whose 32 answers are then graded while it goes on. ``idle`` is the
share of the iteration in which the timer does not run.
"""

import argparse
import functools
import subprocess
import sys
import tempfile
import time
from typing import Any

import esplug_tasks_judge as judge
from esplug.rewards import RewardPool
from tests.helpers.chat_server import chat_server, completion

ARMS = ((0.0, 32), (0.5, 32), (0.5, None))  # latency of a reply in seconds, answers graded at once
MEMBERS, ANSWERS, MEMBER_SECONDS = 8, 32, 1.5
TARGET = {"prompt": "Write about a hotel."}


def serve(latency: float) -> None:
    """Reply after ``latency`` seconds until standard input closes; print the address."""

    def reply(body: dict[str, Any], _: int) -> bytes:
        time.sleep(latency)
        share = (len(body["messages"][0]["content"]) % 97 + 1) / 100
        return completion("yes", {"yes": share, "no": 1 - share})

    with chat_server(reply) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def measure(url: str, concurrency: int | None, folder: str) -> tuple[float, float]:
    """Return the seconds of an iteration, and how many of them it waits for rewards at its end."""
    options = dict(judge.options()) | {"model": "any", "base_url": url, "cache": folder}
    reward = functools.partial(judge.reward, options=options)
    with RewardPool(reward, timeout=100, processes=2, concurrency=concurrency) as pool:
        pool.submit([f"warm-up {number}" for number in range(8)], [TARGET] * 8).result()
        began, pending = time.perf_counter(), []
        for member in range(MEMBERS):
            time.sleep(MEMBER_SECONDS)
            answers = [f"answer {number} of member {member}" for number in range(ANSWERS)]
            pending.append(pool.submit(answers, [TARGET] * ANSWERS))
        generated = time.perf_counter()
        for each in pending:
            each.result()
        ended = time.perf_counter()
    return ended - began, ended - generated


def main() -> None:
    """Measure every arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        return serve(arguments.serve)
    print("latency  at once  iteration  waiting  idle")
    for latency, concurrency in ARMS:
        command = [sys.executable, "-m", "benchmarks.iteration.slow_rewards", "--serve", str(latency)]
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
        ):
            assert server.stdout
            iteration, waiting = measure(server.stdout.readline().strip(), concurrency, folder)
            server.communicate()
        idle = 1 - MEMBERS * MEMBER_SECONDS / iteration
        print(f"{latency:7}  {concurrency or 'process':>7}  {iteration:9.1f}  {waiting:7.1f}  {idle:4.0%}", flush=True)


if __name__ == "__main__":
    main()

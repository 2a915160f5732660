"""The real driver on several Ray nodes of one machine: stand-in engines that answer at once, and graders elsewhere."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from esplug.checkpoints.history import CatchUp, CaughtUp, History
from esplug.engines import EnginePool, Job
from esplug.engines.cluster import Cluster
from esplug.engines.messages import Completion, EngineSettings, Generation, Sampling, Weights, Work
from esplug.planning.placement import Plan
from esplug.rewards import RewardPool

PROMPTS = 512
_BUSY = 4.0  # seconds of an answer while heartbeats are counted: one every 2 s then, by default one every 30 s
_GRADING, _ANSWERS = 0.05, 4096


@contextmanager
def _cluster(nodes: int, cores: int) -> Iterator[Cluster]:
    """Start Ray nodes with that many pretended cores each, besides a head without any."""
    from ray.cluster_utils import Cluster as LocalCluster

    started = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        started.add_node(num_cpus=cores, object_store_memory=2**27)
    connected = Cluster(started.address, None)
    try:
        yield connected
    finally:
        connected.close()
        started.shutdown()


class StandIn:
    """Actor that stands in for the engines of a node. It answers at once, or after the seconds that a prompt names."""

    def __init__(self) -> None:
        self._texts = [Completion("<answer>1+2</answer>", 40, True)] * PROMPTS
        self._pulses = 0

    def location(self) -> tuple[str, int]:
        import ray

        return ray.get_runtime_context().get_node_id(), 2**30

    def pulse(self) -> float:
        self._pulses += 1
        return 0.0

    def pulses(self) -> int:
        return self._pulses

    def start(self, settings: Any, share: Any, most: Any, cache: Any, catch_up: CatchUp) -> CaughtUp:
        return CaughtUp(1, 1)

    def generate(self, weights: Sequence[Weights], prompts: Any, seeds: Any, sampling: Sampling) -> list[Generation]:
        seconds = _BUSY if len(prompts) == 1 else 0.0
        time.sleep(seconds)
        return [Generation(self._texts[: len(prompts)], (Work(-1, 0.0, 0.1, seconds),))]

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        return 1


class StandInPool(EnginePool):
    """Pool of many engines, which one process on each node stands in for."""

    def _spawn(self, slot: Any) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        same = [other.actor for other in self._slots if other.node == slot.node and other.actor is not None]
        if same:
            slot.actor = same[0]
        else:
            there = NodeAffinitySchedulingStrategy(slot.node, soft=False)
            made = ray.remote(concurrency_groups={"pulse": 1})(StandIn)
            slot.actor = made.options(num_cpus=0, max_concurrency=1000, scheduling_strategy=there).remote()
        slot.reset()

    def pulses(self) -> int:
        import ray

        return sum(ray.get([actor.pulses.remote() for actor in {slot.actor for slot in self._slots}]))


def drive(engines: Sequence[int], nodes: int) -> None:
    """Print what the driver needs for each number of engines, on so many nodes."""
    print(f"\ndriver, {nodes} nodes, {PROMPTS} prompts a member of 100 tokens each\n")
    print("| engines | start | threads | memory | heartbeats | members | processor time a member | elapsed |")
    print("|---|---|---|---|---|---|---|---|")
    settings = EngineSettings("", "auto", "float32", "auto", "cpu", 1, None, 0.5)
    here = psutil.Process()
    with _cluster(nodes, max(engines) // nodes + 1):
        for count in engines:
            before = here.memory_info().rss
            began, threads = time.perf_counter(), threading.active_count()
            pool = StandInPool(Plan(count, "cpu", 0, 1), settings, 0, 0, Path("nonexistent"), timeout=20.0)
            pool.start(History(1))
            started = time.perf_counter() - began
            population = max(1024, 2 * count)
            prompts = [[7] * 100 for _ in range(PROMPTS)]
            for measured in (False, True):
                began, busy = time.perf_counter(), time.process_time()
                members = sum(1 for _ in pool.run(_jobs(population, prompts)))
                elapsed, spent = time.perf_counter() - began, time.process_time() - busy
                if measured:
                    threads, memory = threading.active_count() - threads, here.memory_info().rss - before
                    pulses = _heartbeats(pool, 4 * count)
                    print(
                        f"| {count} | {started:.1f} s | {threads} more | {memory / 1e6:.0f} MB more | {pulses:.1f} a "
                        f"second | {members} | {spent / members * 1e3:.2f} ms | {elapsed / members * 1e3:.2f} ms |",
                        flush=True,
                    )
            pool.close()


def _heartbeats(pool: StandInPool, members: int) -> float:
    """Return the heartbeats a second while every engine is busy."""
    before, began = pool.pulses(), time.perf_counter()
    for _ in pool.run(_jobs(members, [[7]])):
        pass
    return (pool.pulses() - before) / (time.perf_counter() - began)


def _jobs(population: int, prompts: list[list[int]]) -> Iterator[Job[int]]:
    seeds = list(range(len(prompts)))
    return (Job([i], [Weights(i, 1e-3)], prompts, seeds, Sampling(48), PROMPTS) for i in range(population))


def _grade(output: str, target: None) -> float:
    time.sleep(_GRADING)
    return float(len(output))


def grade(workers: Sequence[int], nodes: int) -> None:
    """Print how long an iteration's answers take to grade with so many graders on other nodes."""
    print(f"\ngrading of {_ANSWERS:,} answers, {1e3 * _GRADING:g} ms each, {nodes} other nodes\n")
    print("| graders here | on other nodes | seconds | of the least possible |\n|---|---|---|---|")
    cores = len(os.sched_getaffinity(0))
    with _cluster(nodes, -(-max(workers) // nodes)) as cluster:
        for count in workers:
            with (
                RewardPool(_grade, timeout=5, processes=cores) as pool,
                pool.spread(count, cluster.others),
            ):
                seen: set[int | None] = set()
                while len(seen) < cores + count:  # until all have started
                    few = 4 * (cores + count)
                    seen |= {each.grader for each in pool.submit(["1"] * few, [None] * few).result()}
                began = time.perf_counter()
                pool.submit(["1"] * _ANSWERS, [None] * _ANSWERS).result()
                taken = time.perf_counter() - began
            share = _ANSWERS * _GRADING / (cores + count) / taken
            print(f"| {cores} | {count} | {taken:.1f} | {share:.0%} |", flush=True)

r"""Traffic benchmark: bytes to and from an engine in an iteration, and memory of the driver and the engine.

    python -m benchmarks.traffic                      # model sizes and N
    python -m benchmarks.traffic --iterations 300     # growth with the number of iterations, smallest model
    python -m benchmarks.traffic --nodes 1 2 4        # an engine on each of several Ray nodes of this machine

It uses real Ray and vLLM. Bytes are those of the pickled arguments and results of calls to an engine's actor; a batch
of prompts goes to the object store once an iteration. Memory is the driver's resident set and the engine's private set.
"""

import argparse
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from benchmarks.shared.machine import processor
from esplug.checkpoints.history import CaughtUp, History
from esplug.engines.pool import EnginePool
from esplug.trainer import EvolutionStrategiesTrainer
from tests.helpers.tiny import make_tiny_model

PROMPTS = [f"Question number {number} of a batch, which asks for something." for number in range(32)]
SMALL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"


class Counted:
    """Wrapper of an actor that reports the pickled size of its calls' arguments."""

    def __init__(self, actor: Any, report: Any) -> None:
        self._actor, self._report = actor, report

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return method if name in ("pulse", "start", "location", "save") else _Call(method, self._report)


class _Call:
    def __init__(self, method: Any, report: Any) -> None:
        self._method, self._report = method, report

    def remote(self, *arguments: Any) -> Any:
        import ray

        self._report(sum(len(pickle.dumps(each)) for each in arguments if not isinstance(each, ray.ObjectRef)))
        return self._method.remote(*arguments)


class CountingPool(EnginePool):
    """Pool that counts bytes since the last :meth:`reset`."""

    sent = received = put = 0
    seconds = 0.0  # that the engines took to start

    def start(self, history: History) -> CaughtUp:
        began = time.perf_counter()
        caught_up = super().start(history)
        self.seconds = time.perf_counter() - began
        return caught_up

    def _spawn(self, slot: Any) -> None:
        super()._spawn(slot)
        slot.actor = Counted(slot.actor, self._send)

    def _send(self, count: int) -> None:
        self.sent += count

    def reset(self) -> None:
        self.sent = self.received = self.put = 0

    def run(self, jobs: Any) -> Iterator[Any]:
        jobs = list(jobs)
        self.put += sum(
            len(pickle.dumps(prompts)) for prompts in {id(job.prompts): job.prompts for job in jobs}.values()
        )
        for key, generation in super().run(jobs):
            self.received += len(pickle.dumps(generation))
            yield key, generation


class Trainer(EvolutionStrategiesTrainer):
    """Trainer that records bytes and memory after every iteration."""

    pool = CountingPool

    def launch_engines(self) -> EnginePool:
        self.notes: list[tuple[int, int, int, float, float]] = []
        return super().launch_engines()

    def train_step(self, iteration: int) -> None:
        assert isinstance(self.engines, CountingPool)
        self.engines.reset()
        began, busy = time.perf_counter(), time.process_time()
        super().train_step(iteration)
        self.start = self.engines.seconds
        self.last = time.perf_counter() - began, time.process_time() - busy
        here = psutil.Process()
        engines = [each for each in here.children(recursive=True) if each.name().startswith("ray::Engine")]
        engine = max((each.memory_full_info().uss for each in engines), default=0)  # none is a child in a cluster
        pool = self.engines
        self.notes.append((pool.sent, pool.received, pool.put, here.memory_info().rss / 1e6, engine / 1e6))


def run(model: Path, population: int, iterations: int, engines: int, **settings: Any) -> Trainer:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model_name=str(model),
            max_model_len=256,
            population_size=population,
            max_tokens=16,
            num_iterations=iterations,
            reward_function=_reward,
            train_dataloader=[(PROMPTS, [0] * len(PROMPTS))],
            n_vllm_engines=engines,
            use_gpus="none",
            logging="jsonl",
            output_directory=folder,
            antithetic=True,
            **settings,
        )
        trainer.fit()
    return trainer


def on_nodes(model: Path, count: int) -> str:
    """Return the row of a run with an engine on each of ``count`` nodes."""
    from tests.helpers.ray_nodes import Nodes

    population = 64
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as folder, Nodes(Path(folder)) as nodes:
        for _ in range(count):
            nodes.add()
        share = {"gpu_memory_utilization": 0.02, "mini_batch_size": len(PROMPTS)}
        trainer = run(model, population, 3, count, ray_address=nodes.address, **share)
    sent, received, put, _, _ = trainer.notes[-1]
    seconds, busy = trainer.last
    return (
        f"| {count} | {trainer.start:.1f} | {seconds:.2f} | {1e3 * busy / population:.2f} | {put:,} | "
        f"{sent / population:,.0f} | {received / population:,.0f} | {trainer.checksum:016x} |"
    )


def compare_nodes(model: Path, counts: Sequence[int]) -> None:
    """Print a row for each number of nodes. Each run has a process of its own, because Ray remembers clusters."""
    from benchmarks.traffic.__main__ import on_nodes  # by a name that the other process can import

    print("| nodes | start, s | iteration, s | driver, ms a member | prompts, B | sent, B a member | received | sum |")
    print("|---|---|---|---|---|---|---|---|")
    for count in counts:
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            print(apart.submit(on_nodes, model, count).result(), flush=True)


def _reward(output: str, target: int) -> float:
    return sum(map(ord, output)) % 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, help="print growth over so many iterations of the tiny model")
    parser.add_argument("--nodes", type=int, nargs="+", help="print rows for so many Ray nodes")
    options = parser.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores; {platform.platform()}, python {platform.python_version()}\n")
    with tempfile.TemporaryDirectory() as folder:
        tiny = make_tiny_model(Path(folder, "tiny"))
        if options.nodes:
            return compare_nodes(tiny, options.nodes)
        if options.iterations:
            notes = run(tiny, 8, options.iterations, 1).notes
            print(
                "| after iteration | to the engine, B | from it, B | driver, MB | engine, MB |\n|---|---|---|---|---|"
            )
            for done in sorted({1, 10, *range(50, options.iterations + 1, 50), options.iterations}):
                sent, received, _, driver, engine = notes[done - 1]
                print(f"| {done} | {sent:,} | {received:,} | {driver:.1f} | {engine:.1f} |")
            return
        print("| weights | N | prompts, B | sent, B a member | received, B a member | driver, MB | engine, MB |")
        print("|---|---|---|---|---|---|---|")
        for model, size in ((tiny, "0.1 M"), (SMALL, "135 M")):
            for population in (8, 64) if model is tiny else (8, 16):
                sent, received, put, driver, engine = run(model, population, 3, 1).notes[-1]
                each = f"{sent / population:,.0f} | {received / population:,.0f}"
                print(f"| {size} | {population} | {put:,} | {each} | {driver:.0f} | {engine:.0f} |", flush=True)


if __name__ == "__main__":
    main()

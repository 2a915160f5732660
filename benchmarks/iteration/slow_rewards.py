r"""Slow rewards: how long engines wait for rewards that a server gives.

    python -m benchmarks.iteration.slow_rewards

One engine makes iterations with rewards of the task ``judge``, from a local server that replies after a fixed time. The
table shows medians of the iterations after the first, in seconds; ``idle`` is the share of the iteration in which the
engine neither writes weights, generates nor updates.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import esplug_tasks_judge as judge
from esplug.engines import EnginePool
from esplug.trainer import EvolutionStrategiesTrainer
from esplug_tasks_judge import topics
from tests.helpers.chat_server import chat_server, completion
from tests.helpers.training import KeptEngines

MODEL = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct"
ARMS = ((0.0, 32), (0.5, 32), (0.5, None))  # latency of a reply in seconds, answers graded at once


class OneEngine(EvolutionStrategiesTrainer):
    """A trainer whose engine outlives the run."""

    pool = KeptEngines
    kept: EnginePool | None = None

    def launch_engines(self) -> EnginePool:
        OneEngine.kept = OneEngine.kept or super().launch_engines()
        return OneEngine.kept


def serve(latency: float) -> None:
    """Reply after ``latency`` seconds until standard input closes; print the address."""

    def reply(body: dict[str, Any], _: int) -> bytes:
        time.sleep(latency)
        share = (len(body["messages"][0]["content"]) % 97 + 1) / 100
        return completion("yes", {"yes": share, "no": 1 - share})

    with chat_server(reply) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def measure(latency: float, concurrency: int | None, folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Train in a new run, and return medians of its iterations after the first."""
    command = [sys.executable, "-m", "benchmarks.iteration.slow_rewards", "--serve", str(latency)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        url = server.stdout.readline().strip()
        options = dict(judge.options()) | {
            "model": "any",
            "base_url": url,
            "cache": f"{folder}/{latency}-{concurrency}",
        }
        result = OneEngine(
            model_name=arguments.model,
            dtype="float32",
            population_size=arguments.population_size,
            num_iterations=arguments.iterations + 1,
            batch_size=arguments.batch_size,
            max_tokens=32,
            max_model_len=256,
            reward_function=functools.partial(judge.reward, options=options),
            reward_concurrency=concurrency,
            reward_function_timeout=60.0,
            template_function=lambda question: [{"role": "user", "content": question}],
            train_dataloader=[judge.collate(topics.rows("train")[: arguments.batch_size], options)],
            n_vllm_engines=1,
            use_gpus="none",
            logging=["jsonl"],
            output_directory=folder,
        ).fit(summary=False)
        server.communicate()
    rows = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("time/iteration", "time/grade_wait", "time/switch", "time/engine_generate", "time/update")
    medians = {name: statistics.median(row[name] for row in rows[1:]) for name in names}
    busy = sum(medians[name] for name in ("time/switch", "time/engine_generate", "time/update"))
    return medians | {"idle": 1 - busy / medians["time/iteration"]}


def main() -> None:
    """Measure every arm on the same engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--population-size", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        return serve(arguments.serve)
    import ray

    ray.init(address="local", num_gpus=0, include_dashboard=False, log_to_driver=False)
    print("latency  at once  iteration  waiting for grades   idle")
    with tempfile.TemporaryDirectory() as folder:
        for latency, concurrency in ARMS:
            of = measure(latency, concurrency, folder, arguments)
            times = f"{of['time/iteration']:9.1f}  {of['time/grade_wait']:18.2f}  {of['idle']:5.1%}"
            print(f"{latency:7}  {concurrency or 'process':>7}  {times}", flush=True)
    assert OneEngine.kept
    OneEngine.kept.stop()


if __name__ == "__main__":
    main()

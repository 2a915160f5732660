"""Learning curve on Countdown: trains SmolLM2-135M-Instruct on easy puzzles and prints the held-out reward.

    python -m benchmarks.learning.countdown --iterations 20

Runs ``esplug train`` on the available devices and evaluates every few iterations on puzzles that are never trained on.
Each evaluation is compared with the first on the same prompts. Decoding is greedy, so intervals are over puzzles.
Unknown flags are passed on to ``esplug train``.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from esplug.evaluation.statistics import mean_estimate, paired_difference

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct"))
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--population", type=int, default=16, help="members  [default: 16]")
    parser.add_argument("--batch", type=int, default=48, help="puzzles per iteration  [default: 48]")
    parser.add_argument("--eval-freq", type=int, default=5, help="iterations between evaluations  [default: 5]")
    parser.add_argument("--eval-limit", type=int, default=500, help="held-out puzzles  [default: 500]")
    parser.add_argument("--output", type=Path, default=ROOT / "experiments", help="folder of the run's directory")
    parser.add_argument("--name", default="learn-countdown", help="name of the run's directory")
    own, passed_on = parser.parse_known_args()
    settings = {
        "config": ROOT / "examples" / "countdown_cpu.toml",
        "model-name": own.model,
        "dtype": "auto",
        "sigma": 0.001,
        "alpha": 0.0015,
        "n-iterations": own.iterations,
        "population-size": own.population,
        "batch-size": own.batch,
        "eval-freq": own.eval_freq,
        "eval-limit": own.eval_limit,
        "output-directory": own.output,
        "experiment-name": own.name,
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "esplug", "train", "--antithetic", *flags, *passed_on], check=True)
    report(own.output / own.name)


def report(run: Path) -> None:
    """Print the learning curve of a finished run."""
    environment = json.loads((run / "environment.json").read_text())
    print(f"\n{environment['platform']}, {environment['cores']} cores; {environment['packages']}")
    print((run / "config.toml").read_text().replace("\n", "; "))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = {row["step"]: row["time/iteration"] for row in rows if "time/iteration" in row}
    train_rewards = {row["step"]: row["train/reward/mean"] for row in rows if "train/reward/mean" in row}
    first: dict[str, list[float]] = {}
    print(
        f"\n{'iteration':>9} {'seconds':>8}  {'held-out reward':<27} {'change since 0, same prompts':<28} train reward"
    )
    files = run.glob("eval-output/model_eval_task*_iteration*.json")
    for file in sorted(files, key=lambda file: int(file.stem.rpartition("iteration")[2])):
        record = json.loads(file.read_text())
        done, rewards = record["iteration"], [sample["reward"] for sample in record["samples"]]
        start = first.setdefault(record["split"], rewards)
        trained = "".join(f"{value:.4f}" for step, value in train_rewards.items() if step == done - 1)
        spent = sum(value for step, value in seconds.items() if step < done)
        change = str(paired_difference(start, rewards)) if done else ""
        print(f"{done:>9} {spent:>8.0f}  {mean_estimate(rewards)!s:<27} {change:<28} {trained}")


if __name__ == "__main__":
    main()

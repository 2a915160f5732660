"""Results of the learning benchmark: one line of ``results/STUDY.jsonl`` per run, and tables of them."""

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.learning.studies import STUDIES

RESULTS = Path(__file__).parent / "results"


def results_of(study: str) -> list[dict[str, Any]]:
    """Read the finished runs of a study."""
    path = RESULTS / f"{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(study: str, result: Mapping[str, Any]) -> None:
    """Append a run to its study's file, under a lock because several runs may finish at once."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{study}.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(result, separators=(",", ":")) + "\n")


def report(name: str) -> None:
    """Print each arm's learning curve: the mean over seeds, with an interval over the questions."""
    from esplug.evaluation.statistics import mean_estimate

    print(f"\n{name}: held-out reward, mean [95% interval over questions, each the mean of its seeds]\n")
    study = STUDIES[name]
    columns = ["arm, answers", "runs", *(f"{count:,}" for count in study.shown), f"to {study.mark}"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for arm in study.arms:
        if found := curve(name, arm):
            cells = [str(mean_estimate(found[count])) if count in found else "" for count in study.shown]
            to_mark = reached([sum(row) / len(row) for row in found.values()], list(found), study.mark)
            print(f"| {arm} | {len(kept(name, arm))} | {' | '.join(cells)} | {to_mark} |")


def compare(name: str, first: str, second: str) -> None:
    """Print how far the first arm is ahead of the second on the same questions, after equal numbers of answers."""
    from esplug.evaluation.statistics import paired_difference

    ours, other = curve(name, first), curve(name, second)
    if not ours or not other:
        raise SystemExit(f"no run of {first if not ours else second!r} has finished")
    print(f"\n{name}: {first} - {second}, mean [95% interval over questions, each the mean of its seeds]\n")
    for count in sorted(ours.keys() & other.keys()):
        print(f"| {count:,} | {paired_difference(other[count], ours[count])} |")


def kept(name: str, arm: str) -> list[dict[str, Any]]:
    """Return the finished runs of an arm, in order of their seeds."""
    return sorted((each for each in results_of(name) if each["arm"] == arm), key=lambda each: each["seed"])


def curve(name: str, arm: str) -> dict[int, list[float]]:
    """Return each distinct question's reward, averaged over seeds, by number of answers.

    ``tiny_sums.py`` draws some questions several times. Their values are scaled so that the mean is that of all draws
    and the variance about it is that of a mean over distinct questions.
    """
    import numpy as np

    from benchmarks.learning import tiny_sums

    runs = kept(name, arm)
    if not runs:
        return {}
    evaluations = min(len(run["answers"]) for run in runs)  # an interrupted study may have shorter runs
    rewards = np.array([run["rewards"][:evaluations] for run in runs]).mean(axis=0)  # evaluations x draws
    if not STUDIES[name].task:
        questions, _ = tiny_sums.split(rewards.shape[1], 1)
        _, first, draws = np.unique(questions, return_index=True, return_counts=True)
        mean = rewards.mean(axis=1, keepdims=True)
        rewards = mean + (rewards[:, first] - mean) * draws / draws.mean()
    return dict(zip(runs[0]["answers"], rewards.tolist(), strict=False))


def reached(curve: Sequence[float], answers: Sequence[int], mark: float) -> str:
    """Return after how many answers a curve first passes a mark, interpolated between evaluations, or ``-``."""
    for at in range(1, len(curve)):
        if curve[at] >= mark > curve[at - 1]:
            share = (mark - curve[at - 1]) / (curve[at] - curve[at - 1])
            return f"{answers[at - 1] + share * (answers[at] - answers[at - 1]):,.0f}"
    return "-"

r"""Studies on the tiny models: many arms and seeds, seconds a run.

    python -m benchmarks.tiny_models noise            # make the missing runs of a study, then print its table
    python -m benchmarks.tiny_models noise --print    # print the table of the finished runs

Each run becomes a line of ``results/runs.jsonl``. All runs with a seed see the same prompts in the same order, and the
same noise if they have as many members. An arm's gain is the held-out reward at the end of its run minus that at the
start (``end``), or the mean over its evaluations instead of the last one (``mean``). Intervals are 95%, over seeds
(Student's t).
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.tiny_models.es import Arm, run
from benchmarks.tiny_models.models import KINDS

SIGMAS = {"small": 0.004, "deep": 0.004, "reverse": 0.008}
RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
#: Two-sided 95% quantiles of Student's t by number of seeds.
T95 = {4: 3.182, 8: 2.365, 12: 2.201, 24: 2.069}
MEASURES = ("end", "mean")

STEPS = (1, 2, 3, 4, 8)
Settings = dict[str, Any]  # fields of Arm, and ``times`` the model's sigma


def swept(name: str, steps: Sequence[float], **settings: Any) -> dict[str, Settings]:
    """Return one arm per step."""
    comma = "" if name.endswith(" from") else ","
    return {f"{name}{comma} step {step:g}": {"step": step} | settings for step in steps}


def without(kind: str) -> tuple[float, ...]:
    return tuple(float(each != kind) for each in KINDS)


def only(kind: str) -> tuple[float, ...]:
    return tuple(float(each == kind) for each in KINDS)


PLAIN = swept("plain", STEPS)
STUDIES: dict[str, dict[str, Settings]] = {
    "noise": {
        **PLAIN,
        **swept("equal noise", (1, 2, 4, 8), noise="equal"),
        **swept("equal noise up to signs", (2, 4), noise="signs"),
    },
    "step": {
        **PLAIN,
        **swept("cosine", (2, 3, 4, 8), schedule="cosine"),
        **swept("curvature from", (2,), rule="curvature"),
        **swept("two-point from", (0.5, 2, 8), rule="two-point"),
        **swept("path from", (2,), rule="path"),
        **swept("mirrored, agreement", (4,), mirrored=True, rule="agreement"),
        **swept("shrunk", (4,), shaping="shrunk"),
        **swept("ranks", (2, 8), shaping="centered-ranks"),
        **swept("ranks, norm 1", (2, 4), shaping="centered-ranks", normalize=True),
        **swept("z-scores per prompt", (2, 8), shaping="z-scores-per-prompt"),
        **swept("z-scores per prompt, norm 1", (2, 4), shaping="z-scores-per-prompt", normalize=True),
    },
    "sigma": {
        **PLAIN,
        **swept("half of sigma", (1, 2, 3, 4), times=0.5),
        **swept("twice sigma", (1, 2, 3, 4), times=2),
    },
    "variance": {
        **PLAIN,
        **swept("8 members, 64 prompts", (1, 2, 4), members=8, prompts=64),
        **swept("64 members, 8 prompts", (4, 6, 8, 16), members=64, prompts=8),
    },
    "kinds": {
        **swept("plain", (3,)),
        **swept("no noise in norms", (3,), scales=without("norms")),
        **swept("no noise in embeddings", (3,), scales=without("embeddings")),
        **swept("no noise in attention", (3,), scales=without("attention")),
        **swept("no noise in mlp", (3,), scales=without("mlp")),
        **swept("noise only in attention", (3,), scales=only("attention")),
        **swept("noise only in mlp", (3,), scales=only("mlp")),
        **swept("noise only in embeddings", (3,), scales=only("embeddings")),
        # Noise of the same norm as that of the plain arm
        **swept("1.3 sigma, no noise in attention", (3,), scales=without("attention"), times=1.3),
        **swept("1.6 sigma, no noise in mlp", (3,), scales=without("mlp"), times=1.6),
        **swept("1.6 sigma, only in attention", (3,), scales=only("attention"), times=1.6),
        **swept("1.3 sigma, only in mlp", (3,), scales=only("mlp"), times=1.3),
        # More noise in embeddings, whose weights are about twice as large as those of the matrices
        **swept("4 sigma, only in embeddings", (3,), scales=only("embeddings"), times=4),
        **swept("2 sigma in embeddings", (3,), scales=(1, 2, 1, 1)),
        **swept("4 sigma in embeddings", (3,), scales=(1, 4, 1, 1)),
    },
    "reuse": {
        **swept("plain", (3,)),
        **swept("last population at 0.5", (3, 4), reuse=0.5),
    },
    "pairs": {
        **swept("pairs, 0.25 sigma", (3, 8, 12, 24), mirrored=True, times=0.25),
        **swept("pairs, 0.5 sigma", (3, 6, 12), mirrored=True, times=0.5),
        **swept("pairs, 1 sigma", (1, 3, 6), mirrored=True, times=1),
        **swept("pairs, 2 sigma", (0.5, 1, 2), mirrored=True, times=2),
        **swept("pairs, 4 sigma", (0.25, 0.5, 1, 2), mirrored=True, times=4),
        **swept("pairs, 8 sigma", (0.25, 0.5, 1), mirrored=True, times=8),
        **swept("pairs, 16 sigma", (0.125, 0.25, 0.5), mirrored=True, times=16),
    },
}
SEEDS = range(1, 9)
#: Arms with 4 seeds: rules that were given up, and those of studies ``sigma`` and ``pairs``.
FEWER = ("curvature", "path", "half of sigma", "twice sigma", "pairs")


def finished() -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return the finished runs by variant, arm and seed."""
    rows = [json.loads(row) for row in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(row["variant"], row["arm"], row["seed"]): row for row in rows}


def make_missing(study: str) -> None:
    """Make the missing runs of a study, seed by seed."""
    arms = STUDIES[study]
    done = finished()
    for seed in SEEDS:
        for variant, sigma in SIGMAS.items():
            for name, settings in arms.items():
                if (variant, name, seed) in done or (name.startswith(FEWER) and seed > 4):
                    continue
                own = dict(settings)
                arm = Arm(sigma=sigma * own.pop("times", 1), **own)
                started = time.perf_counter()
                result = run(variant, arm, seed)
                row = {
                    "variant": variant,
                    "arm": name,
                    "seed": seed,
                    "curve": result["curve"],
                    "averaged": result["averaged"],
                }
                if arm.rule:
                    row["steps"] = result["steps"]
                if study == "pairs":
                    row["pairs"] = result["pairs"]
                row["seconds"] = round(time.perf_counter() - started, 1)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row, separators=(",", ":")) + "\n")


def gains(variant: str, arm: str, measure: str) -> dict[int, float]:
    """Return the gain of each seed: at the ``end`` of the run, or the ``mean`` over its evaluations."""
    found = {seed: row["curve"] for (v, a, seed), row in finished().items() if (v, a) == (variant, arm)}
    return {s: (c[-1] if measure == "end" else float(np.mean(c[1:]))) - c[0] for s, c in sorted(found.items())}


def interval(values: Iterable[float]) -> str:
    """Return the mean of values with its 95% interval."""
    numbers = np.array(list(values))
    return f"{numbers.mean():+.3f} ± {T95[len(numbers)] * numbers.std(ddof=1) / np.sqrt(len(numbers)):.3f}"


def differences(variant: str, first: str, second: str, measure: str) -> list[float]:
    """Return how far one arm is ahead of another on each seed that both have."""
    one, two = gains(variant, first, measure), gains(variant, second, measure)
    return [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]


def table(study: str) -> Iterator[str]:
    """Yield the rows of a table: the gains of each arm, and their smallest share of those of the best plain arm."""
    columns = [(variant, measure) for variant in SIGMAS for measure in MEASURES]
    best = [max(np.mean(list(gains(*column_of(column, arm)).values())) for arm in PLAIN) for column in columns]
    yield f"| arm | {' | '.join(', '.join(column) for column in columns)} | smallest share |"
    yield "|---" * (2 + len(columns)) + "|"
    for arm in STUDIES[study]:
        found = [gains(*column_of(column, arm)).values() for column in columns]
        share = min(np.mean(list(each)) / most for each, most in zip(found, best, strict=True))
        yield f"| {arm} | {' | '.join(map(interval, found))} | {share:.0%} |"


def column_of(column: tuple[str, str], arm: str) -> tuple[str, str, str]:
    return column[0], arm, column[1]


def averages() -> Iterator[str]:
    """Yield the rows of a table: what the mean of the last masters earns more than the last one."""
    yield f"| arm, masters | {' | '.join(SIGMAS)} |\n|{'---|' * (1 + len(SIGMAS))}"
    for arm in PLAIN:
        for at, count in enumerate((2, 4, 8)):
            rows = [[row for (v, a, _), row in finished().items() if (v, a) == (variant, arm)] for variant in SIGMAS]
            cells = [interval(row["averaged"][at] - row["curve"][-1] for row in each) for each in rows]
            yield f"| {arm}, {count} | {' | '.join(cells)} |"


def pairs() -> Iterator[str]:
    """Yield the rows of a table: each sigma at the step with the best mean, and what its mirrored members say."""
    yield "| model | sigma, best step | end | mean | correlation | over 5 iterations | undefined | all equal |"
    yield "|---" * 8 + "|"
    for variant in SIGMAS:
        for _, arms in groupby(STUDIES["pairs"], key=lambda arm: arm.rpartition(",")[0]):
            best = max(arms, key=lambda arm: np.mean(list(gains(variant, arm, "mean").values())))
            told = [row["pairs"] for (v, a, _), row in finished().items() if (v, a) == (variant, best)]
            figures = np.array(told, dtype=float)  # [seeds, iterations, 2], None as NaN
            correlations, equal = figures[..., 0], figures[..., 1]
            five = np.nanmean(sliding_window_view(correlations, 5, axis=1), axis=2)
            ends = " | ".join(interval(gains(variant, best, measure).values()) for measure in MEASURES)
            yield (
                f"| {variant} | {best.removeprefix('pairs, ')} | {ends} | {np.nanmean(correlations):+.2f} "
                f"| {five.min():+.2f} to {five.max():+.2f} | {np.isnan(correlations).mean():.0%} | {equal.mean():.0%} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--print", action="store_true")
    parser.add_argument("--compare", nargs=2, metavar="ARM", help="print the paired difference of two arms")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.print and not arguments.compare:
        make_missing(arguments.study)
    if arguments.compare:
        for measure in MEASURES:
            found = [differences(variant, *arguments.compare, measure) for variant in SIGMAS]
            print(f"| {measure} | {' | '.join(map(interval, found))} | all: {interval(chain.from_iterable(found))} |")
        return
    print("\n".join(table(arguments.study)))
    if arguments.study == "pairs":
        print("\n".join(pairs()))
    if arguments.study == "variance":
        print("\n".join(averages()))


if __name__ == "__main__":
    main()

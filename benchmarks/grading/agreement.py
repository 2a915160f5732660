r"""Agreement of two graders, the task's and math-verify, on the same pairs under the same limit of time.

    python -m benchmarks.grading.agreement --data SUITE --tests SDIST

SUITE is a saved DatasetDict with a column ``answer``. SDIST is math-verify's source distribution, whose tests contain
pairs (``pip download math-verify==0.9.0 --no-deps --no-binary :all:``). Where the graders disagree, ``verdicts.tsv``
says whether the answer is right, for a pair by its key or for all pairs of a rule. Its rows were written by hand.
"""

import argparse
import csv
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.grading.pairs import Pair, from_suites, from_tests
from benchmarks.grading.suites import accepted, plain
from benchmarks.shared.machine import processor
from esplug import Reward
from esplug.rewards import RewardPool
from esplug_tasks_math import reward

TIMEOUT = 5.0  # seconds for each answer and grader
VERDICTS = Path(__file__).with_name("verdicts.tsv")
COLUMNS = (
    "source",
    "says",
    "pairs",
    "esplug",
    "math-verify",
    "agree",
    "esplug is right",
    "math-verify is right",
    "not judged",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How both graders graded a pair; ``judged`` is the verdict by hand, if there is one."""

    pair: Pair
    ours: bool
    theirs: bool
    judged: bool | None

    @property
    def right(self) -> bool:
        """Whether the answer is right: as judged by hand, or else as the pair's source says."""
        return self.pair.right if self.judged is None else self.judged


def math_verify_reward(model_output: str, target: str) -> Reward:
    """Grade with math-verify as a library, configured as its documentation suggests for boxed answers."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    configs = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())

    def read(text: str) -> Any:
        return parse(text, configs, parsing_timeout=None)

    given = read(model_output)
    golds = (read(rf"\boxed{{{plain(text)}}}") for text in accepted(target))
    right = any(verify(gold, given, timeout_seconds=None) for gold in golds)
    return Reward(float(right), "correct" if right else "wrong", right)


def verdicts() -> dict[str, bool]:
    """Return whether an answer is right, by the key of its pair or by the name of its rule."""
    with VERDICTS.open(encoding="utf-8", newline="") as file:
        return {row["pair"]: row["answer"] == "right" for row in csv.DictReader(file, delimiter="\t")}


def graded(grader: Callable[[str, str], Reward], pairs: list[Pair]) -> tuple[list[bool], str]:
    """Grade all pairs in two processes. Return which answers were right, and a sentence about the time."""
    with RewardPool(grader, timeout=TIMEOUT, processes=2) as pool:
        pool.submit([r"\boxed{\sqrt{x}}"] * 2, [r"\sqrt{y}"] * 2).result()  # load the parser
        grades = pool.submit([rf"\boxed{{{pair.answer}}}" for pair in pairs], [pair.gold for pair in pairs]).result()
    seconds = [grade.seconds for grade in grades]
    late = sum(grade.reward.label == "timeout" for grade in grades)
    failed = sum(grade.failed for grade in grades) - late
    times = f"{fmean(seconds) * 1e3:.1f} ms a pair, the slowest {max(seconds):.2f} s, {late} timeouts, {failed} errors"
    return [grade.reward.value == 1.0 for grade in grades], times


def rows(outcomes: list[Outcome]) -> Iterator[list[str]]:
    """Yield one row for each source, and one for all of them."""
    groups: dict[tuple[str, bool], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.pair.source, outcome.pair.right), []).append(outcome)
    for (source, right), group in (*groups.items(), (("all", None), outcomes)):
        apart = [outcome for outcome in group if outcome.ours != outcome.theirs]
        judged = [outcome for outcome in apart if outcome.judged is not None]
        ours = sum(outcome.ours == outcome.judged for outcome in judged)
        figures = (
            f"{len(group):,}",
            f"{fmean(outcome.ours == outcome.right for outcome in group):.1%}",
            f"{fmean(outcome.theirs == outcome.right for outcome in group):.1%}",
            f"{1 - len(apart) / len(group):.1%}",
            str(ours),
            str(len(judged) - ours),
            str(len(apart) - len(judged)),
        )
        yield [source, {True: "right", False: "wrong", None: ""}[right], *figures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a saved DatasetDict with a column 'answer'")
    parser.add_argument("--tests", type=Path, help="math-verify's source distribution (.tar.gz)")
    parser.add_argument("--pairs", type=int, default=40, help="most pairs of one rule and split [default: 40]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rules [default: 0]")
    parser.add_argument("--disagreements", type=Path, help="file (.tsv) to write the pairs without agreement to")
    options = parser.parse_args()
    if find_spec("math_verify") is None:
        parser.error("math-verify is not installed: pip install math-verify==0.9.0")

    found = [
        *(from_tests(options.tests) if options.tests else ()),
        *from_suites(options.data, options.seed, options.pairs),
    ]
    pairs = list({(pair.source, pair.key): pair for pair in found}.values())
    known = verdicts()
    ours, our_times = graded(reward, pairs)
    theirs, their_times = graded(math_verify_reward, pairs)
    outcomes = [
        Outcome(pair, one, other, known.get(pair.key, known.get(pair.source)))
        for pair, one, other in zip(pairs, ours, theirs, strict=True)
    ]

    table = Table(
        *COLUMNS, title="Graded as it should be: as the source says or, after a disagreement, as judged by hand"
    )
    for row in rows(outcomes):
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 140)
    versions = f"python {platform.python_version()}, math-verify {version('math-verify')}, sympy {version('sympy')}"
    console.print(f"{processor()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {versions}")
    console.print(table)
    console.print(f"esplug: {our_times}\nmath-verify: {their_times}")
    if options.disagreements:
        with options.disagreements.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(("pair", "source", "says", "gold", "answer", "esplug", "math-verify", "judged"))
            for outcome in (outcome for outcome in outcomes if outcome.ours != outcome.theirs):
                pair = outcome.pair
                marks = (outcome.ours, outcome.theirs, outcome.judged)
                writer.writerow((pair.key, pair.source, pair.right, pair.gold, pair.answer, *marks))


if __name__ == "__main__":
    main()

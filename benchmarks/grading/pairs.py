r"""Pairs of an expected answer and another: made by rule from a suite, or read from math-verify's own tests."""

import ast
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from random import Random

from benchmarks.grading.rewriting import OTHER, SAME, Rule
from benchmarks.grading.suites import accepted, plain, suites

#: Longest answer taken from math-verify's tests. Longer ones are solutions in prose.
LONGEST = 200

_DELIMITERS = (r"\$\$(.*)\$\$", r"\$([^$]*)\$", r"\\\((.*)\\\)", r"\\\[(.*)\\\]", r"\\boxed\{([^{}]*)\}")
_DELIMITED = [re.compile(pattern, re.DOTALL) for pattern in _DELIMITERS]
_PROSE = re.compile(r"(?<![\\A-Za-z{])[a-z]{3,}(?![A-Za-z])|\$|\\\(|\\\[|\\boxed|\n")


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer to grade against ``gold``; ``right`` is what its source says about it."""

    source: str
    gold: str
    answer: str
    right: bool

    @property
    def key(self) -> str:
        """Hash of the two texts, by which the verdicts name a pair."""
        return blake2b(f"{self.gold}\0{self.answer}".encode(), digest_size=6).hexdigest()


def from_suites(folder: Path, seed: int, most: int) -> Iterator[Pair]:
    """Yield every expected answer against itself, and at most ``most`` pairs of each rule and suite."""
    rules = [
        *((name, rule, True) for name, rule in SAME.items()),
        *((name, rule, False) for name, rule in OTHER.items()),
    ]
    for suite, golds in suites(folder).items():
        for name, rule, right in rules:
            chosen = Random(f"{seed} {suite} {name}")
            shuffled = golds if name == "itself" else chosen.sample(golds, len(golds))
            pairs = _pairs(suite, shuffled, name, rule, right, chosen)
            yield from pairs if name == "itself" else islice(pairs, most)


def _pairs(suite: str, golds: list[str], name: str, rule: Rule, right: bool, rng: Random) -> Iterator[Pair]:
    source = f"{suite}, itself" if name == "itself" else name
    for gold in golds:
        rewritten = rule(plain(accepted(gold)[0]), rng)
        if rewritten is not None:
            yield Pair(source, gold, rewritten, right)


def from_tests(archive: Path) -> Iterator[Pair]:
    """Yield the pairs in the tests of math-verify's source distribution, without those whose answer is prose."""
    with tarfile.open(archive) as files:
        for member in files:
            if re.search(r"/tests/test_\w+\.py$", member.name):
                content = files.extractfile(member)
                yield from _from_module(ast.parse(content.read())) if content else ()


def _from_module(module: ast.Module) -> Iterator[Pair]:
    for node in ast.walk(module):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "parametrize" and len(node.args) == 2):
            continue
        names = [name.strip() for name in str(getattr(node.args[0], "value", "")).split(",")]
        if names[:2] != ["gold", "pred"] or not {"expected", "result"} & set(names) or "strict" in names:
            continue
        right = names.index("expected" if "expected" in names else "result")
        for case in node.args[1].elts if isinstance(node.args[1], ast.List) else ():
            try:
                values = ast.literal_eval(case)
            except ValueError:
                continue
            gold, answer = _bare(values[0]), _bare(values[1])
            if gold is not None and answer is not None:
                yield Pair("math-verify's tests", gold, answer, bool(values[right]))


def _bare(text: str) -> str | None:
    """Return an answer without its delimiters, or ``None`` for a text in which it would have to be found."""
    for pattern in _DELIMITED:
        match = pattern.fullmatch(text.strip())
        text = match[1] if match else text
    return None if len(text) > LONGEST or _PROSE.search(text) else text.strip()

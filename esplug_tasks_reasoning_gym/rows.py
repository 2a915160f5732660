"""Rows of the selected generators: made in a child process, the same on every machine, with held-out questions apart.

A generator's rows are a stream that the seed fixes. Of the different questions in it, the first ``shots`` are worked
examples in the prompts, the next ``eval_size`` are held out for evaluation, and the next ones are for training. So no
question is in two of these.
"""

import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from esplug_tasks_reasoning_gym.selection import Choice, Selection

Row = dict[str, Any]
#: Rows that a generator is made for, or a multiple. All rows of ``acre`` depend on it, also the held-out ones.
_LENGTH = 10_000
_MOST_SHOTS = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """The rows of a run.

    Attributes:
        selection: the generators.
        seed: of every generator.
        size: training rows, of all generators together.
        eval_size: held-out rows of each generator.
        shots: worked examples in each prompt, in the column ``examples`` as questions and answers.
    """

    selection: Selection
    seed: int
    size: int
    eval_size: int
    shots: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "eval_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.shots <= _MOST_SHOTS:
            raise ValueError(f"shots must be between 0 and {_MOST_SHOTS}, not {self.shots}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and {2**32 - 1}, not {self.seed}")

    def train(self) -> list[Row]:
        """Return the training rows, of each generator in proportion to its weight.

        Raises:
            ValueError: a generator fails, or all its questions are held out.
        """
        return [row for rows in self._made(training=True).values() for row in rows[self.eval_size :]]

    def held_out(self) -> dict[str, list[Row]]:
        """Return the held-out rows of each generator. Raises as :meth:`train` does."""
        training = self in _trained  # then the rows are at hand
        return {name: rows[: self.eval_size] for name, rows in self._made(training=training).items()}

    def _made(self, *, training: bool) -> dict[str, list[Row]]:
        """Return each generator's held-out rows, followed by its training rows if they are wanted."""
        choices, held_out = self.selection.choices, self.shots + self.eval_size
        shares = _shares([choice.weight for choice in choices], self.size)
        counts = tuple(held_out + share * training for share in shares)
        length = _LENGTH * math.ceil(2 * (held_out + max(shares)) / _LENGTH)  # with and without training rows
        made = {
            choice.name: _with_examples(rows, self.shots)
            for choice, rows in zip(choices, _generate(choices, counts, self.seed, length), strict=True)
        }
        if training:
            for (name, rows), share in zip(made.items(), shares, strict=True):
                _check_enough(name, len(rows), share, self.eval_size)
            _trained.add(self)
        return made


_trained: set[Wanted] = set()


def _shares(weights: list[float], size: int) -> list[int]:
    """Divide ``size`` rows in proportion to the weights, by rounding the running total; each gets at least one."""
    ends = [round(size * sum(weights[: number + 1]) / sum(weights)) for number in range(len(weights))]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def _with_examples(rows: tuple[Row, ...], shots: int) -> list[Row]:
    """Move the first rows into the column ``examples`` of the others, if they have answers."""
    examples = [(row["question"], row["answer"]) for row in rows[:shots] if row["answer"] is not None]
    return [{**row, "examples": examples} for row in rows[shots:]]


def _check_enough(name: str, found: int, share: int, eval_size: int) -> None:
    if found <= eval_size:
        remedy = f"choose eval_size={max(1, found // 2)} or less" if found > 1 else "choose other options of it"
        raise ValueError(
            f"{name} has only {found} different questions, and eval_size={eval_size} holds all out; {remedy}"
        )
    if found < eval_size + share:
        logging.getLogger("esplug").warning(
            f"{name} has only {found} different questions with these options: {eval_size} are held out, "
            f"and {found - eval_size} instead of {share} are for training"
        )


@lru_cache(maxsize=4)
def _generate(
    choices: tuple[Choice, ...], counts: tuple[int, ...], seed: int, length: int
) -> tuple[tuple[Row, ...], ...]:
    """Return up to ``counts`` rows of each generator, made for ``length`` rows in a child with a fixed hash seed."""
    wanted = [
        {"name": choice.name, "options": choice.options, "count": count}
        for choice, count in zip(choices, counts, strict=True)
    ]
    command = [sys.executable, "-P", "-m", "esplug_tasks_reasoning_gym.stream"]
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    done = subprocess.run(
        command,
        input=json.dumps({"generators": wanted, "seed": seed, "length": length}),
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the process that makes rows failed: {done.stderr.strip()[-500:]}")
    made = [json.loads(line) for line in done.stdout.splitlines()]
    if errors := [each["error"] for each in made if "error" in each]:
        raise ValueError(errors[0])
    return tuple(tuple(json.loads(each["rows"])) for each in made)

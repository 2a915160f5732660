"""Rows of the selected generators: made in a child process, the same on every machine, with held-out questions apart.

A generator's rows are a stream that the seed fixes. A hash of each question says whether it is for training or held
out, so no question is both, with any seeds. Both kinds come from the whole stream: where a generator has few questions,
the likely ones run out first. The first ``shots`` different questions for training are worked examples in the prompts.
"""

import json
import logging
import math
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from esplug_tasks_reasoning_gym.selection import Choice, Selection
from esplug_tasks_reasoning_gym.stream import HELD_OUT

Row = dict[str, Any]
#: Rows that a generator is made for, or a multiple. All rows of ``acre`` depend on it, also the held-out ones.
_LENGTH = 10_000
_MOST_SHOTS = 8
_PATIENCE = 15.0  # seconds until a message says that rows are being made


@dataclass(frozen=True, slots=True)
class _Made:
    """A generator's rows of each kind."""

    training: list[Row]
    held_out: list[Row]


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
            ValueError: a generator fails, or has too few questions.
        """
        return [row for made in self._made(training=True).values() for row in made.training]

    def held_out(self) -> dict[str, list[Row]]:
        """Return the held-out rows of each generator. Raises as :meth:`train` does."""
        training = self in _trained  # then the rows are at hand
        return {name: made.held_out for name, made in self._made(training=training).items()}

    def _made(self, *, training: bool) -> dict[str, _Made]:
        """Return each generator's rows, with those for training if they are wanted."""
        choices = self.selection.choices
        shares = _shares([choice.weight for choice in choices], self.size)
        counts = tuple((self.shots + share * training, self.eval_size) for share in shares)
        drawn = max(HELD_OUT * self.eval_size, 2 * (self.shots + max(shares)))  # with and without training rows
        length = _LENGTH * math.ceil(2 * drawn / _LENGTH)
        made = {
            choice.name: _with_examples(rows, self.shots)
            for choice, rows in zip(choices, _generate(choices, counts, self.seed, length), strict=True)
        }
        for (name, rows), share in zip(made.items(), shares, strict=True):
            _check_enough(name, rows, share if training else 0, self.eval_size)
        if training:
            _trained.add(self)
        return made


_trained: set[Wanted] = set()


def _shares(weights: list[float], size: int) -> list[int]:
    """Divide ``size`` rows in proportion to the weights, by rounding the running total; each gets at least one."""
    ends = [round(size * sum(weights[: number + 1]) / sum(weights)) for number in range(len(weights))]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def _with_examples(made: _Made, shots: int) -> _Made:
    """Move the first rows for training into the column ``examples`` of all others, if they have answers."""
    examples = [(row["question"], row["answer"]) for row in made.training[:shots] if row["answer"] is not None]
    training, held_out = (
        [{**row, "examples": examples} for row in rows] for rows in (made.training[shots:], made.held_out)
    )
    return _Made(training, held_out)


def _check_enough(name: str, made: _Made, share: int, eval_size: int) -> None:
    training, held_out = len(made.training), len(made.held_out)
    if held_out < eval_size:
        remedy = f"choose eval_size={held_out} or less" if held_out else "choose other options of it"
        raise ValueError(
            f"{name} has only {held_out} different questions to hold out, not eval_size={eval_size}; {remedy}"
        )
    if share and not training:
        raise ValueError(f"{name} has no question for training; choose other options of it")
    if training < share:
        logging.getLogger("esplug").warning(
            f"{name} has only {training} different questions for training with these options, not {share}"
        )


@lru_cache(maxsize=4)
def _generate(
    choices: tuple[Choice, ...], counts: tuple[tuple[int, int], ...], seed: int, length: int
) -> tuple[_Made, ...]:
    """Return up to ``counts`` rows of each kind, made for ``length`` rows in a child with a fixed hash seed."""
    wanted = [
        {"name": choice.name, "options": choice.options, "counts": count}
        for choice, count in zip(choices, counts, strict=True)
    ]
    command = [sys.executable, "-P", "-m", "esplug_tasks_reasoning_gym.stream"]
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    patience = threading.Timer(_PATIENCE, _say_that_it_takes_long, (choices,))
    patience.daemon = True
    patience.start()
    try:
        done = subprocess.run(
            command,
            input=json.dumps({"generators": wanted, "seed": seed, "length": length}),
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
    finally:
        patience.cancel()
    if done.returncode != 0:
        raise RuntimeError(f"the process that makes rows failed: {done.stderr.strip()[-500:]}")
    made = [json.loads(line) for line in done.stdout.splitlines()]
    if errors := [each["error"] for each in made if "error" in each]:
        raise ValueError(errors[0])
    return tuple(_Made(json.loads(each["training"]), json.loads(each["held_out"])) for each in made)


def _say_that_it_takes_long(choices: tuple[Choice, ...]) -> None:
    names = choices[0].name if len(choices) == 1 else f"{len(choices)} generators"
    logging.getLogger("esplug").warning(
        f"still making rows of {names}; this takes less time with a smaller size or eval_size, or easier options"
    )

"""Task `number-guessing`: find a secret number with few guesses; after each, a hint says "higher" or "lower".

A conversation is a text that the model continues, so that base models can play: the prompt shows a solved game and
ends with ``Guess:``, an answer is one line, and the reply is the hint with the next ``Guess:``.
"""

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from esplug import Reward, hookimpl

LARGEST = 99  # number in any game
LARGEST_SIZE = 94  # the larger a range, the fewer there are: of larger ones, some might be held out all or not at all
EXAMPLE = ((1, 16), (8, 12, 10))  # a range, and the guesses of the game that the prompt shows; the last one is right
_GUESS = re.compile(r"\s*([0-9]{1,3})\s*")


@hookimpl
def options() -> Mapping[str, Any]:
    """Declare the options. ``size``: how many numbers the secret is among. ``eval_rows``: held-out games."""
    return {"size": 16, "eval_rows": 200}


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Allow the guesses that halving the range needs. An answer is one line."""
    return {"max_turns": math.ceil(math.log2(_size(options) + 1)), "max_tokens": 6, "stop": ["\n"]}


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Make every game of the size; a hash decides which are held out."""
    if path is not None:
        return None
    size, most = _size(options), options["eval_rows"]
    rows = [row for row in _games(size) if _is_held_out(row) == (split == "eval")]
    rows.sort(key=lambda row: zlib.crc32(repr(row).encode()))  # so that the first ones are of all kinds
    return rows if split == "train" else {"held_out": rows[:most]}


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, int]], list[dict[str, int]]]:
    """The question is the range, and the target is the range and the secret."""
    targets = [{name: _whole(name, row[name]) for name in ("low", "high", "secret")} for row in batch]
    for target in targets:
        if not 0 <= target["low"] <= target["secret"] <= target["high"] <= 999 or target["low"] == target["high"]:
            raise ValueError(f"low <= secret <= high <= 999 and low < high do not hold for {target}")
    return [(target["low"], target["high"]) for target in targets], targets


@hookimpl
def template(question: tuple[int, int]) -> str:
    """Show a solved game, and ask for the first guess of another."""
    (low, high), guesses = EXAMPLE
    *_, secret = guesses
    solved = "".join(f"Guess: {guess}\nHint: {_hint(guess, secret)}\n" for guess in guesses)
    return f"Number from {low} to {high}.\n{solved}\nNumber from {question[0]} to {question[1]}.\nGuess:"


@hookimpl
def turn(messages: list[dict[str, str]], target: Mapping[str, int]) -> list[dict[str, str]] | None:
    """Give a hint; end the game when the guess is right or is no number."""
    guess = _guess(messages[-1]["content"])
    if guess is None or guess == target["secret"]:
        return None
    return [{"role": "user", "content": f"Hint: {_hint(guess, target['secret'])}\nGuess:"}]


@hookimpl
def reward(model_output: str, target: Mapping[str, int], messages: list[dict[str, str]]) -> Reward:
    """Give 1 for the secret, else up to 0.5 for what the hints have told: ``1 - log(left) / log(size)``, halved."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    guesses = [guess for answer in answers if (guess := _guess(answer)) is not None]
    low, high = target["low"], target["high"]
    size, useful = high - low + 1, 0
    for guess in guesses:
        useful += low <= guess <= high
        if guess < target["secret"]:
            low = max(low, guess + 1)
        elif guess > target["secret"]:
            high = min(high, guess - 1)
    found = target["secret"] in guesses
    told = 1 - math.log(high - low + 1) / math.log(size)
    label = "found" if found else "no_number" if len(guesses) < len(answers) else "not_found"
    metrics = {"guesses": len(guesses), "possible_guesses": useful / max(1, len(guesses))}
    return Reward(1.0 if found else 0.5 * told, label, found, metrics)


def _size(options: Mapping[str, Any]) -> int:
    size: int = options["size"]
    if not 2 <= size <= LARGEST_SIZE:
        raise ValueError(f"size must be between 2 and {LARGEST_SIZE}, not {size}")
    if options["eval_rows"] < 1:
        raise ValueError(f"eval_rows must be at least 1, not {options['eval_rows']}")
    return size


def _whole(column: str, value: Any) -> int:
    with suppress(TypeError, ValueError, OverflowError):
        if (number := int(value)) == float(value):
            return number
    raise ValueError(f"column {column!r}: {str(value)[:60]!r} is not a whole number")


def _games(size: int) -> Iterator[dict[str, int]]:
    for low in range(1, LARGEST - size + 2):
        if low != EXAMPLE[0][0]:
            yield from ({"low": low, "high": low + size - 1, "secret": low + rank} for rank in range(size))


def _is_held_out(row: Mapping[str, int]) -> bool:
    """Hold out one range in four, with all its secrets: a range with other secrets would give the first guess away."""
    return zlib.crc32(repr((row["low"], row["high"])).encode()) % 4 == 0


def _hint(guess: int, secret: int) -> str:
    return "correct" if guess == secret else "higher" if guess < secret else "lower"


def _guess(answer: str) -> int | None:
    """Return the number that an answer consists of; ``None`` if it is anything else."""
    found = _GUESS.fullmatch(answer)
    return int(found[1]) if found else None

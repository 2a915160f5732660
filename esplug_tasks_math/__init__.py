"""The task ``math``: problems whose answer stands in the last ``\\boxed{...}``."""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from esplug import Reward, hookimpl

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
#: Bounds on hostile text: characters in a box, and unbalanced boxes looked at.
LONGEST_BOX, MOST_BOXES = 10_000, 20
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d{1,30})\}\{(\d{1,30})\}")
_NUMBER = re.compile(r"[-+]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(/\d{1,30})?")


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Read the columns ``problem`` and ``answer``."""
    return [str(row["problem"]) for row in batch], [str(row["answer"]) for row in batch]


@hookimpl
def template(question: str) -> list[dict[str, str]]:
    """Ask in the model's own chat format."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]


@hookimpl
def reward(model_output: str, target: str) -> Reward:
    """Give 1.0 for the expected answer in the last box, else 0.0."""
    boxed = last_boxed(model_output)
    if boxed is None:
        return Reward(0.0, "no_box", correct=False)
    correct = same_answer(boxed, target)
    return Reward(float(correct), "correct" if correct else "wrong", correct=correct)


def last_boxed(text: str) -> str | None:
    """Return what the last ``\\boxed{...}`` with balanced braces holds."""
    end = len(text)
    for _ in range(MOST_BOXES):
        start = text.rfind("\\boxed{", 0, end)
        if start < 0:
            return None
        depth = 0
        for position in range(start + len("\\boxed"), min(len(text), start + LONGEST_BOX)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                return text[start + len("\\boxed{") : position]
        end = start
    return None


def same_answer(given: str, expected: str) -> bool:
    """Compare two answers as text and as numbers."""
    given, expected = _plain(given), _plain(expected)
    if given == expected:
        return True
    left, right = _number(given), _number(expected)
    return left is not None and left == right


def _plain(answer: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", answer).strip("$").strip()


def _number(answer: str) -> Fraction | None:
    """Read a number exactly, or return ``None``."""
    if match := _FRACTION.fullmatch(answer):
        sign, top, bottom = match.groups()
        return Fraction(int(sign + "1") * int(top), int(bottom)) if int(bottom) else None
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer)
    if not _NUMBER.fullmatch(plain):
        return None
    top, _, bottom = plain.partition("/")
    return Fraction(top) / int(bottom) if bottom and int(bottom) else None if bottom else Fraction(top)

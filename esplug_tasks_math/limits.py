"""Limits on the work for one answer, counted in steps, so that a grade does not depend on the machine's speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Limits: characters of an answer, depth of nesting, digits of a number, tokens of an expression, parts of a list.
LONGEST_ANSWER, DEEPEST, MOST_DIGITS, MOST_TOKENS, MOST_ITEMS = 2_000, 30, 400, 400, 64
#: Steps for one answer. A step is about the time of one addition of numbers of 400 bits, some microseconds.
MOST_STEPS = 40_000

_left: ContextVar[list[float]] = ContextVar("_left")


class Unreadable(ValueError):  # noqa: N818 - it describes the text
    """A text that cannot be parsed: too long, nested too deeply, unbalanced, or too much work."""


@contextmanager
def budget(steps: int = MOST_STEPS) -> Iterator[None]:
    """Allow so many steps for the comparisons inside the ``with`` block."""
    token = _left.set([steps])
    try:
        yield
    finally:
        _left.reset(token)


def spend(steps: float) -> None:
    """Count steps.

    Raises:
        Unreadable: no steps are left.
    """
    left = _left.get(None)
    if left is not None:
        left[0] -= steps
        if left[0] < 0:
            raise Unreadable("too much work")

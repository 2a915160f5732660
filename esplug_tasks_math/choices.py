r"""Multiple-choice answers: the letter of ``(C)``, ``\text{Option C}`` or ``C) 12``."""

import re

from esplug_tasks_math.latex import Tokens, spell

_SAID = r"(?i:(?:the )?(?:correct )?(?:final )?(?:option|choice|answer)(?: is)?:?\s*)?"
_ONLY = re.compile(rf"{_SAID}\(?(?P<letter>[A-J])\)?")
_FIRST = re.compile(
    rf"{_SAID}(?:\(\s*(?P<inside>[A-Ja-j])\s*\)|(?P<before>[A-Ja-j])\)|(?P<letter>[A-J])(?=[.:]|\s*$))(?P<rest>.*)"
)
# Another choice in the rest of an answer. The word "a" is none.
_OTHER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])|\([a-j]\)|(?<![A-Za-z])[a-j]\)|\b(?:or|and) ?[b-j](?![A-Za-z])")


def choice(gold: Tokens) -> str | None:
    """Return the letter that a gold answer consists of, or ``None`` if it is not a choice."""
    match = _ONLY.fullmatch(_plain(gold))
    return match["letter"] if match else None


def chosen(given: Tokens) -> str | None:
    """Return the one letter that an answer chooses; ``None`` if it names none or several."""
    match = _FIRST.fullmatch(_plain(given))
    if match is None or _OTHER.search(match["rest"]):
        return None
    return (match["inside"] or match["before"] or match["letter"]).upper()


def _plain(answer: Tokens) -> str:
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", spell(answer))
    return " ".join(text.split()).strip(" .")

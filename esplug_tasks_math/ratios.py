"""Ratios and times of day: ``3:4``, ``1:2:3``, ``3 to 4``, ``12:30``, ``5 pm``."""

import re

from esplug_tasks_math.latex import Tokens, content, spell
from esplug_tasks_math.shapes import NOON, Ratio, Time

_TIME = re.compile(
    r"(?P<hours>[0-9]{1,2})(?::(?P<minutes>[0-5][0-9]))?(?:\\text\{(?P<half>[ap])\.? ?m\.?\})?", re.IGNORECASE
)
_DAY = 24


def time(answer: Tokens) -> Time | None:
    """Parse a time: hours and two digits of minutes, or a half of the day, or both."""
    match = _TIME.fullmatch(spell(answer))
    if match is None or not (match["minutes"] or match["half"]) or int(match["hours"]) > _DAY:
        return None
    half = f"{match['half'].lower()}m" if match["half"] else ""
    if half and not 1 <= int(match["hours"]) <= NOON:
        return None
    return Time(int(match["hours"]) * 60 + int(match["minutes"] or 0), half)


def ratio(answer: Tokens) -> Ratio | None:
    """Parse a ratio; return ``None`` if no colon separates the answer into parts."""
    parts: list[Tokens] = [()]
    depth = 0
    for token in answer:
        depth += (token in ("(", "[", "{", r"\{")) - (token in (")", "]", "}", r"\}"))
        if depth == 0 and (token == ":" or content(token) == "to"):
            parts.append(())
        else:
            parts[-1] += (token,)
    return Ratio(tuple(parts)) if len(parts) > 1 and all(parts) and "=" not in answer else None

r"""Numbers in a base: ``52_8``, ``(1010)_2``, ``1010_{\text{two}}``, ``1010 \text{ base } 2``."""

import re
from dataclasses import dataclass

from esplug_tasks_math.latex import Tokens, spell
from esplug_tasks_math.spelling import listed

_NAMES = listed("two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen")
_BASE = rf"(?:[0-9]{{1,2}}|{'|'.join(_NAMES)})"
_IN_BASE = re.compile(
    r"(?P<sign>-?)\(?(?P<digits>[0-9A-Za-z]+(?:,[0-9]{3})*)\)?"
    rf"(?:_(?P<plain>[0-9]{{1,2}})|_\{{(?P<braced>{_BASE})\}}"
    rf"|_\{{?\( ?(?P<bracket>{_BASE}) ?\)\}}?| ?_?\{{? ?base ?(?P<said>{_BASE})\}}?)"
)


@dataclass(frozen=True, slots=True)
class Based:
    """A number in a base, with its digits as text."""

    digits: str
    base: int


def based(answer: Tokens) -> Based | None:
    """Parse a number in a base; return ``None`` if the answer names no base."""
    text = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", spell(answer)).split())
    match = _IN_BASE.fullmatch(
        re.sub(r"_ ([a-z0-9]+)$", r"_{\1}", text).replace("{ ", "{").replace(" }", "}").replace(" _", "_")
    )
    if match is None:
        return None
    name = match["plain"] or match["braced"] or match["bracket"] or match["said"]
    base = int(name) if name.isdigit() else _NAMES.index(name) + 2
    return Based(match["sign"] + match["digits"].replace(",", "").upper().lstrip("0"), base)


def same(given: Tokens, gold: Tokens) -> bool | None:
    """Compare numbers of which at least one names its base; return ``None`` if none does."""
    left, right = based(given), based(gold)
    if left is None and right is None:
        return None
    return (left or _decimal(given)) == (right or _decimal(gold))


def _decimal(answer: Tokens) -> Based | None:
    return Based(answer[0].lstrip("0"), 10) if len(answer) == 1 and answer[0].isdecimal() else None

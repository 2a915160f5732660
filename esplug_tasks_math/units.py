"""Units of quantities: splits them from numbers and compares them."""

import re

from esplug_tasks_math.latex import Tokens, content, spell

#: Name of each spelling of a unit. A unit that is not listed matches any other.
_NAMES = {
    name: names[0]
    for names in (
        line.split()
        for line in """
        % percent pct
        ° degree deg
        radian rad
        dollar usd buck
        cent ¢
        euro
        meter m metre
        centimeter cm centimetre
        millimeter mm millimetre
        kilometer km kilometre
        inch in inche
        foot ft feet
        yard yd
        mile mi
        second s sec
        minute min
        hour h hr
        day
        week
        month
        year yr
        gram g
        kilogram kg
        pound lb
        ounce oz
        liter l litre
        mph
        km/h kph
        hertz hz
        joule j
        volt v
        watt w
        newton n
        kelvin k
        celsius °c c
        fahrenheit °f f
        nanometer nm nanometre
        micrometer μm micrometre
        milligram mg
        milliliter ml millilitre
        millisecond ms
        kilojoule kj
        kilowatt kw
        kilohertz khz
        megahertz mhz
        """.strip().splitlines()
    )
    for name in names
}
_KNOWN = frozenset(_NAMES.values())
# Units that are recognized after a number even without \text.
_BARE = frozenset(name for name in _NAMES if len(name) > 1 and name.isalpha())

_POWER = r"(?:\^(?:[0-9]|\{-?[0-9]+\}))?"
_TAIL = re.compile(rf"(?:\\text\{{[^{{}}]*\}}{_POWER}|%|°|[CFK](?![A-Za-z])|/|\\cdot)+")
_BARE_TAIL = re.compile(rf"(?P<word>[A-Za-z]{{2,}}){_POWER}")
#: Power of ten of words that multiply the number before them.
_FACTORS = {"hundred": "2", "thousand": "3", "million": "6", "billion": "9", "trillion": "12"}
# Text that starts with these words is part of the answer and not a unit.
_NO_UNIT = re.compile(
    r"(?:or|and|is|are|does|no|not|negative|squared|cubed|factorial|dozens?|score|gross|times|half|more|less)\b"
    r"|.*[0-9,;=?!]"
)
_MODULUS = re.compile(r"\(?mod ")
_FUNCTIONS = frozenset({r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc"})
_ARC = {1: "arcminute", 2: "arcsecond"}


def split(answer: Tokens) -> tuple[Tokens, str]:
    r"""Split a quantity from its unit.

    Returns:
        The tokens without the unit, and the name of the unit, ``""`` if there is none: ``$18.90``, ``15\mbox{ cm}^2``,
        ``41.8^\circ``, ``62.5\%``, ``5 \text{ cents}``, ``3 \times 10^{14} Hz``. A word alone is not a unit.
    """
    currency = next((sign for sign in ("\\$", "£", "€") if sign in answer[:2]), None)
    if currency and len(answer) > 1:
        bare = tuple(token for token in answer if token != currency)
        return split(bare)[0], {"\\$": "dollar", "€": "euro"}.get(currency, currency)
    if answer and answer[-1] in ("\\$", "€"):
        return answer[:-1], "dollar" if answer[-1] == "\\$" else "euro"
    for start in range(1, len(answer)):
        if answer[start] in "%°" or content(answer[start]):
            if answer[start] == "°" and not _FUNCTIONS.isdisjoint(answer[:start]):
                break  # the degrees of an angle whose sine is the answer
            tail = spell(answer[start:])
            if _TAIL.fullmatch(tail):
                return _quantity(answer, start, tail)
            break
    return _without_bare_unit(answer)


def may_be_same(left: str, right: str) -> bool:
    """Return whether two units are compatible: equal, or one of them missing or unknown."""
    moduli = bool(_MODULUS.match(left) and _MODULUS.match(right))
    return left == right or not (moduli or (_known(left) and _known(right)))


def _quantity(answer: Tokens, start: int, tail: str) -> tuple[Tokens, str]:
    """Split before ``start``, unless the words there are not a unit. Multiply the number by a factor word."""
    word, _, rest = _readable(tail).partition(" ")
    if word in _FACTORS:
        return (*answer[:start], r"\cdot", "10", "^", "{", _FACTORS[word], "}"), _name(rest)
    if _NO_UNIT.match(re.sub(r"\^\{?-?[0-9]\}?", "", _readable(tail))) and not _MODULUS.match(_readable(tail)):
        return answer, ""
    return answer[:start], _name(tail)


def _without_bare_unit(answer: Tokens) -> tuple[Tokens, str]:
    primes = sum(token == "'" for token in answer[-2:]) if answer[-1:] == ("'",) else 0
    if primes and answer[-primes - 1 : -primes] and answer[-primes - 1].isdigit():
        return answer[:-primes], _ARC[primes]
    for start in range(1, len(answer)):
        if answer[start].isalpha() and not answer[start - 1].isalpha():
            match = _BARE_TAIL.fullmatch(spell(answer[start:]))
            follows_number = answer[start - 1].isdigit() or answer[start - 1] in "})"
            if match and follows_number and _singular(match["word"]) in _BARE:
                return answer[:start], _name(match[0])
    return answer, ""


def _readable(tail: str) -> str:
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail).lower()
    return " ".join(text.replace("\\cdot", " ").split()).replace(" ^", "^").strip(" .")


def _name(tail: str) -> str:
    text = _readable(tail)
    for prefix, power in (("square ", "^2"), ("sq ", "^2"), ("sq. ", "^2"), ("cubic ", "^3")):
        if text.startswith(prefix):
            text = text.removeprefix(prefix) + power
    word, hat, power = text.partition("^")
    word = _singular(word.strip())
    return _NAMES.get(word, word) + hat + power


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 2 and word.endswith("s") and word not in _NAMES else word


def _known(unit: str) -> bool:
    return unit.partition("^")[0] in _KNOWN

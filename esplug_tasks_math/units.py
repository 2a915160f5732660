"""Quantities: splits numbers from the units and words after them, and compares those."""

import re
from fractions import Fraction

from esplug_tasks_math.latex import Tokens, content, spell
from esplug_tasks_math.measures import NONE, SINGLE_LETTERS, Unit, unit
from esplug_tasks_math.rationals import rational
from esplug_tasks_math.spelling import listed

_POWER = r"(?:\^(?:-?[0-9]|\{-?[0-9]+\}))?"
_TEXT = rf"\\text\{{[^{{}}]*\}}{_POWER}"
_TAIL = re.compile(rf"(?:{_TEXT}|\\frac\{{{_TEXT}\}}\{{{_TEXT}\}}|%|°|[CFK](?![A-Za-z])|/|\\cdot)+")
_BARE_TAIL = re.compile(rf"(?P<word>[A-Za-z]{{2,}}){_POWER}")
_SPELT_TAIL = re.compile(
    r"(?P<number>.*[0-9})$.])(?P<space>\s*)"
    r"(?P<words>[A-Za-z][A-Za-z.]*(?:\s[A-Za-z.]+)*(?:\s?/\s?[A-Za-z]+)?(?:\^(?:-?[0-9]|\{-?[0-9]\}))?)",
    re.DOTALL,
)
_CURRENCIES = {"\\$": "dollar", "€": "euro", "£": "£", "¥": "¥", "₹": "₹"}
#: Words that multiply the number before them.
_FACTORS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
# Words that change the number before them, or that say something about it.
_NO_UNIT = re.compile(
    r"\b(?:or|and|is|are|was|does|no|not|never|negative|minus|plus|times|squared|cubed|factorial|half|halves|thirds?|"
    r"quarters?|fourths?|(?:fif|six|seven|eigh|nin|ten|twelf|hundred|thousand|million|billion)ths?|hundreds|thousands|"
    r"millions|billions|dozens?|scores?|gross|more|less|fewer|than|most|least|about|over|under|except|but|if|of|wrong|"
    r"incorrect|false|guess|maybe|perhaps|instead|to|through|ones|tens|twos|divided|multiplied|base)\b|[0-9,;=?!]"
)
_MODULUS = re.compile(r"\(?mod ")
_IRREGULAR = frozenset(
    listed("people persons men women children feet mice geese fish sheep deer total altogether dice oxen teeth")
)
_SINGULAR = frozenset(
    listed("""solution way point pair number integer value root digit triangle line circle person man woman child
    student apple ball box card coin book marble unit game day pencil car house tree answer function
    pair set element vertex edge""")
)
_LONGEST_NOUN, _LONGEST_UNIT = 4, 24  # words, tokens
_FUNCTIONS = frozenset({r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc"})
_ARC = {1: "arcminute", 2: "arcsecond"}


def split(answer: Tokens) -> tuple[Tokens, Unit]:
    r"""Split a quantity from its unit.

    Returns:
        The tokens without the unit, and the unit: ``$18.90``, ``15\mbox{ cm}^2``, ``41.8^\circ``, ``62.5\%``,
        ``5 \text{ cents}``, ``3 \times 10^{14} Hz``. A word alone is not a unit.
    """
    currency = next((sign for sign in _CURRENCIES if sign in answer[:2] or sign in answer[-1:]), None)
    if currency and len(answer) > 1:
        bare = tuple(token for token in answer if token != currency)
        return split(bare)[0], unit(_CURRENCIES[currency])
    for start in range(1, len(answer)):
        if answer[start] in "%°" or content(answer[start]) or _is_fraction_of_units(answer, start):
            if answer[start] == "°" and not _FUNCTIONS.isdisjoint(answer[:start]):
                break  # the degrees of an angle whose sine is the answer
            tail = spell(answer[start:])
            if _TAIL.fullmatch(tail):
                return _quantity(answer, start, tail)
            break
    return _without_bare_unit(answer)


def may_be_same(given: Unit, gold: Unit, number: Fraction | None = None) -> bool:
    """Return whether units are compatible: convertible, equal words, or missing on one side.

    If the gold answer has no unit, the words after the given ``number`` must be a unit or a noun that adds nothing.
    """
    if given.name == gold.name:
        return True
    if gold == NONE:
        return given.dimensions is not None or bool(_MODULUS.match(given.name)) or _is_noun(given.name, number)
    if given == NONE:
        return True
    return given.dimensions is not None and given.dimensions == gold.dimensions


def scaled(value: Tokens, given: Unit, gold: Unit) -> Tokens:
    """Return a value in the unit of the gold answer, if the units differ in their factor only."""
    if NONE in (given, gold) or given.dimensions is None or given.factor == gold.factor:
        return value
    factor = given.factor / gold.factor
    return ("(", *value, ")", r"\cdot", r"\frac", "{", str(factor.numerator), "}", "{", str(factor.denominator), "}")


def spelt_out(text: str, *, glued: bool = False) -> str:
    r"""Mark bare words after a number as text: ``10 ways`` becomes ``10 \text{ways}``.

    A single letter is a unit after a space, or if ``glued``, without one: ``5m``.
    """
    match = _SPELT_TAIL.fullmatch(text.strip())
    if match is None:
        return text
    words = match["words"]
    first = re.match("[A-Za-z]+", words)
    if first and len(first[0]) == 1 and not ((match["space"] or glued) and words[0] in SINGLE_LETTERS):
        return text
    return rf"{match['number']}\text{{{words.replace('^{', '^').removesuffix('}')}}}"


def _is_fraction_of_units(answer: Tokens, start: int) -> bool:
    return answer[start] == r"\frac" and bool(content("".join(answer[start + 2 : start + 3])))


def _quantity(answer: Tokens, start: int, tail: str) -> tuple[Tokens, Unit]:
    """Split before ``start``, unless the words there are not a unit. Multiply the number by a factor word."""
    readable = _readable(tail)
    word, _, rest = readable.partition(" ")
    factor, number = _FACTORS.get(word.lower()), rational(answer[:start])
    if factor and number is not None:
        return _written(number * factor), _unit(rest)
    if _NO_UNIT.search(re.sub(r"\^\{?-?[0-9]+\}?", "", readable.lower())) and not _MODULUS.match(readable):
        return answer, NONE
    return answer[:start], _unit(readable)


def _written(number: Fraction) -> Tokens:
    sign = ("-",) if number < 0 else ()
    top, bottom = str(abs(number.numerator)), str(number.denominator)
    return (*sign, top) if bottom == "1" else (*sign, r"\frac", "{", top, "}", "{", bottom, "}")


def _unit(text: str) -> Unit:
    found = unit(text)
    return Unit(f"{found.name[4:]}") if found.name.startswith("in ") and found.dimensions is None else found


def _without_bare_unit(answer: Tokens) -> tuple[Tokens, Unit]:
    primes = sum(token == "'" for token in answer[-2:]) if answer[-1:] == ("'",) else 0
    if primes and answer[-primes - 1 : -primes] and answer[-primes - 1].isdigit():
        return answer[:-primes], unit(_ARC[primes])
    for start in range(max(1, len(answer) - _LONGEST_UNIT), len(answer)):
        if answer[start].isalpha() and not answer[start - 1].isalpha():
            match = _BARE_TAIL.fullmatch(spell(answer[start:]))
            follows_number = answer[start - 1].isdigit() or answer[start - 1] in "})"
            if match and follows_number and unit(match["word"]).dimensions is not None:
                return answer[:start], unit(match[0])
    return answer, NONE


def _is_noun(words: str, number: Fraction | None) -> bool:
    """Return whether words after a number name the things counted: a plural, or any word after one."""
    listed = words.removeprefix("in ").split()
    if not 0 < len(listed) <= _LONGEST_NOUN or not all(word.replace("-", "").isalpha() for word in listed):
        return False
    last = listed[-1]
    plural = len(last) > 2 and last.endswith("s") and not last.endswith(("ss", "us", "is"))
    return plural or last in _IRREGULAR or (number is not None and abs(number) == 1 and last in _SINGULAR)


def _readable(tail: str) -> str:
    text = re.sub(r"\\frac\{(.*?\}(?:\^\S+?)?)\}\{", r"\1/", tail)
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    return (
        " ".join(text.replace("\\cdot", " ").replace("}", "").replace("{", "").split()).replace(" ^", "^").strip(" .")
    )

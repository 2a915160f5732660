"""Parser of exact numbers: integers, decimals, powers of ten, fractions and mixed numbers."""

import re
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Literal

from esplug_tasks_math.latex import Tokens, spell

#: Largest power of ten to parse.
LARGEST_POWER = 400

_PLAIN = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_TEN = r"10\^(?:(?P<power>[0-9]{1,4})|\{(?P<signed>[-+]?[0-9]{1,4})\})"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<plain>{_PLAIN})(?:\\cdot ?{_TEN}|[eE](?P<e>[-+]?[0-9]{{1,4}}))?"
    r"|10\^(?:(?P<alone>[0-9]{1,4})|\{(?P<alone_signed>[-+]?[0-9]{1,4})\}))"
)
_FRACTION = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>[0-9]+) ?)?\\frac\{(?P<top>[^{}]+)\}\{(?P<bottom>[^{}]+)\}")
_SLASH = re.compile(
    r"(?P<sign>[-+]?)(?:(?P<whole>[0-9]+) )?(?P<top>\(-?[0-9.,]+\)|[0-9.,]+)/(?P<bottom>\(-?[0-9.,]+\)|[0-9.,]+)"
)
_RECURRING = re.compile(
    r"(?P<sign>[-+]?)(?P<start>[0-9]*\.[0-9]*)"
    r"(?:\\(?:overline|bar) ?(?P<line>[0-9]+)|\((?P<bracket>[0-9]+)\)|(?P<dots>\\dot.*))"
)
_DOTS = re.compile(r"\\dot ?[0-9]+(?: ?[0-9]*\\dot ?[0-9]+)*")
_CONTINUED = re.compile(
    r"(?P<sign>[-+]?)(?P<whole>[0-9]*)\.(?P<digits>[0-9]*?)(?P<period>[0-9]+?)(?P=period)(?:(?P=period))*\\ldots"
)
_BRACKETED = re.compile(r"([-+])\(([^()+-]*)\)")  # -(5)
_LEAST_REPEATED, _LONGEST_CONTINUED = 3, 80


@dataclass(frozen=True, slots=True)
class Number:
    """A number that is written out.

    Attributes:
        value: its exact value.
        form: ``digits`` (with or without a point), ``power`` (a bare power of ten), ``scientific``, ``fraction`` (of
            whole numbers), or ``quotient`` (of decimals).
        reduced: whether a fraction is in lowest terms.
    """

    value: Fraction
    form: Literal["digits", "power", "scientific", "fraction", "quotient"] = "digits"
    reduced: bool = True


def rational(answer: Tokens) -> Fraction | None:
    """Return the value of a number, or ``None`` if the tokens are not a number."""
    found = number(answer)
    return None if found is None else found.value


def number(answer: Tokens) -> Number | None:
    r"""Parse a number; return ``None`` if the tokens are not a number.

    Numbers are ``42``, ``1,000``, ``1\,000``, ``.5``, ``3.``, ``4.5e33``, ``8.7 \times 10^{8}``, ``10^{-3}``,
    ``0.\overline{3}``, ``0.\dot{3}``, ``0.(3)``, ``0.333\ldots``, ``\frac{1}{2}``, ``1/2``, and the mixed
    ``1\frac{4}{5}`` and ``5 1/2``, each with or without a sign. A decimal has exactly the value written: ``0.33`` is
    33/100.
    """
    text = spell(answer)
    bracketed = _BRACKETED.fullmatch(text)
    text = bracketed[1] + bracketed[2] if bracketed else text
    return _number(text) or _recurring(text) or _continued(text) or _fraction(text)


def precision(answer: Tokens) -> Fraction | None:
    """Return half a unit in the last digit of a rounded number, or ``None`` for an exact one.

    A number with a decimal point or a power of ten is rounded. A whole number is exact.
    """
    match = _NUMBER.fullmatch(spell(answer))
    if match is None or not match["plain"]:
        return None
    power = match["power"] or match["signed"] or match["e"]
    _, point, decimals = match["plain"].partition(".")
    if not point and power is None:
        return None
    return Fraction(1, 2) * Fraction(10) ** (int(power or 0) - len(decimals))


def _number(text: str) -> Number | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    power = match["power"] or match["signed"] or match["e"] or match["alone"] or match["alone_signed"]
    if abs(int(power or 0)) > LARGEST_POWER:
        return None
    plain = (match["plain"] or "1").replace(",", "").replace(" ", "")
    value = Fraction(plain) * Fraction(10) ** int(power or 0)
    form: Literal["digits", "power", "scientific"]
    form = "power" if not match["plain"] else "digits" if power is None else "scientific"
    return Number(-value if match["sign"] == "-" else value, form)


def _recurring(text: str) -> Number | None:
    match = _RECURRING.fullmatch(text)
    if match is None:
        return None
    if match["dots"] and not _DOTS.fullmatch(match["dots"]):
        return None
    period = match["line"] or match["bracket"] or "".join(re.findall("[0-9]", match["dots"]))
    return _repeated(match["sign"], match["start"], period)


def _continued(text: str) -> Number | None:
    r"""Parse ``0.333\ldots``: digits that repeat to the end, a single digit three times or more."""
    match = _CONTINUED.fullmatch(text) if len(text) <= _LONGEST_CONTINUED else None
    if match is None:
        return None
    repeated = len(match["digits"]) + len(match["period"])
    shown = len(text.partition(".")[2].removesuffix(r"\ldots"))
    if shown - len(match["digits"]) < max(_LEAST_REPEATED, 2 * len(match["period"])) or repeated > shown:
        return None
    return _repeated(match["sign"], f"{match['whole']}.{match['digits']}", match["period"])


def _repeated(sign: str, start: str, period: str) -> Number:
    decimals = len(start.partition(".")[2])
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10**decimals)
    value = Fraction(f"0{start}0") + tail
    return Number(-value if sign == "-" else value)


def _fraction(text: str) -> Number | None:
    match = _FRACTION.fullmatch(text) or _SLASH.fullmatch(text)
    if match is None:
        return None
    top, bottom = (_number(match[name].removeprefix("(").removesuffix(")")) for name in ("top", "bottom"))
    if top is None or bottom is None or not bottom.value:
        return None
    if match["whole"] and not 0 < top.value < bottom.value:
        return None
    value = int(match["whole"] or 0) + top.value / bottom.value
    whole = all(part.form == "digits" and part.value.denominator == 1 for part in (top, bottom))
    reduced = whole and gcd(int(top.value), int(bottom.value)) == 1
    return Number(-value if match["sign"] == "-" else value, "fraction" if whole else "quotient", reduced)

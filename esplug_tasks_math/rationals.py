"""Parser of exact numbers: integers, decimals, powers of ten, fractions and mixed numbers."""

import re
from fractions import Fraction

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
_RECURRING = re.compile(r"(?P<sign>[-+]?)(?P<start>[0-9]*\.[0-9]*)\\overline(?P<period>[0-9]+)")
_SLASH = re.compile(r"(?P<sign>[-+]?)(?:(?P<whole>[0-9]+) )?(?P<top>[0-9.,]+)/(?P<bottom>[0-9.,]+)")


def rational(answer: Tokens) -> Fraction | None:
    r"""Return the value of a number, or ``None`` if the tokens are not a number.

    Numbers are ``42``, ``1,000``, ``1\,000``, ``.5``, ``3.``, ``4.5e33``, ``8.7 \times 10^{8}``, ``10^{-3}``,
    ``0.\overline{3}``, ``\frac{1}{2}``, ``1/2``, and the mixed ``1\frac{4}{5}`` and ``5 1/2``, each with or
    without a sign. A decimal has exactly the value written: ``0.33`` is 33/100.
    """
    text = spell(answer)
    number = _number(text)
    if number is not None:
        return number
    recurring = _RECURRING.fullmatch(text)
    if recurring:
        decimals = len(recurring["start"].partition(".")[2])
        tail = Fraction(int(recurring["period"]), (10 ** len(recurring["period"]) - 1) * 10**decimals)
        value = Fraction(f"0{recurring['start']}0") + tail
        return -value if recurring["sign"] == "-" else value
    match = _FRACTION.fullmatch(text) or _SLASH.fullmatch(text)
    if match is None:
        return None
    top, bottom = _number(match["top"]), _number(match["bottom"])
    if top is None or not bottom or (match["whole"] and (top < 0 or bottom < 0)):
        return None
    value = int(match["whole"] or 0) + top / bottom
    return -value if match["sign"] == "-" else value


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


def _number(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    power = int(match["power"] or match["signed"] or match["e"] or match["alone"] or match["alone_signed"] or 0)
    if abs(power) > LARGEST_POWER:
        return None
    plain = (match["plain"] or "1").replace(",", "").replace(" ", "")
    value = Fraction(plain) * Fraction(10) ** power
    return -value if match["sign"] == "-" else value

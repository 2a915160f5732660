"""Units of measurement: their spellings, dimensions and factors."""

import re
from dataclasses import dataclass
from fractions import Fraction

#: A line has a unit's dimensions, its factor, and its spellings. The first spelling is its name.
_TABLE = """
length          1              meter m metre
length          1/100          centimeter cm centimetre
length          1/1000         millimeter mm millimetre
length          1000           kilometer km kilometre
length          1/1000000000   nanometer nm nanometre
length          1/1000000      micrometer μm micrometre
length          254/10000      inch in inche
length          3048/10000     foot ft feet
length          9144/10000     yard yd
length          1609344/1000   mile mi
length^3        1/1000         liter l litre
length^3        1/1000000      milliliter ml millilitre
length^2        10000          hectare ha
time            1              second s sec
time            1/1000         millisecond ms
time            60             minute min
time            3600           hour h hr
time            86400          day
time            604800         week
time^-1         1              hertz hz
time^-1         1000           kilohertz khz
time^-1         1000000        megahertz mhz
year            1/12           month
year            1              year yr
mass            1              kilogram kg
mass            1/1000         gram g
mass            1/1000000      milligram mg
mass            45359237/100000000  pound lb
mass            45359237/1600000000 ounce oz
mass,length,time^-2    1       newton n
mass,length^2,time^-2  1       joule j
mass,length^2,time^-2  1000    kilojoule kj
mass,length^2,time^-2  3600000 kilowatthour kwh
mass,length^2,time^-3  1       watt w
mass,length^2,time^-3  1000    kilowatt kw
mass,length^-1,time^-2 1       pascal pa
length,time^-1  1609344/3600000     mph
length,time^-1  1000/3600      kph kmh
dollar          1              dollar usd buck
dollar          1/100          cent ¢
euro            1              euro
sterling        1              £
yen             1              ¥ yen
rupee           1              ₹ rupee
angle           1              degree ° deg
angle           1/60           arcminute
angle           1/3600         arcsecond
radian          1              radian rad
percent         1              % percent pct
volt            1              volt v
ampere          1              ampere a amp
ohm             1              ohm Ω
kelvin          1              kelvin k
celsius         1              celsius °c c
fahrenheit      1              fahrenheit °f f
energy_kcal     1              kcal
mole            1              mole mol
unit            1              unit
"""

Dimensions = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit, or the words after a number.

    Attributes:
        name: its text, ``""`` for none.
        factor: how many of the base unit it is.
        dimensions: powers of base units, ``None`` if the words are not a known unit.
    """

    name: str = ""
    factor: Fraction = Fraction(1)
    dimensions: Dimensions | None = ()


NONE = Unit()

_UNITS: dict[str, Unit] = {}
for _line in _TABLE.strip().splitlines():
    _dimensions, _factor, *_spellings = _line.split()
    _powers = tuple(
        sorted((each.partition("^")[0], int(each.partition("^")[2] or 1)) for each in _dimensions.split(","))
    )
    _UNITS |= dict.fromkeys(_spellings, Unit(_spellings[0], Fraction(_factor), _powers))

#: Letters that are a unit if a space separates them from a number.
SINGLE_LETTERS = frozenset("mghsLlVWJNKA")
_SIGNS = frozenset("%°¢CF£¥₹Ω")
_PIECES = re.compile(r"/|\bper\b|(?:[Ss]quare|sq\.?|[Cc]ubic)(?= )|[^\s/^]+(?: ?\^\{?-?[0-9]+\}?)?")
_MEGA = re.compile(r"\b(?:M[LgsJmNW]|mW|mHz|Mm|Kg/M)\b")


def unit(text: str) -> Unit:
    """Return the unit that a text names, such as ``m/s``, ``square feet`` or ``kg m^-3``."""
    if not text:
        return NONE
    if _MEGA.search(text):
        return Unit(text, dimensions=None)
    factor, powers, sign, raised = Fraction(1), dict[str, int](), 1, 1
    names = []
    for piece in _PIECES.findall(text):
        if piece in ("/", "per"):
            sign = -1
        elif piece.rstrip(".").lower() in ("square", "sq", "cubic"):
            raised = 3 if piece.lower() == "cubic" else 2
        else:
            word, _, power = piece.partition("^")
            known = _UNITS.get(singular(word.strip().lower()))
            if len(word.strip()) == 1 and word.strip() not in SINGLE_LETTERS | _SIGNS:
                known = None
            exponent = sign * (int(power.strip("{} ")) if power else 1) * raised
            names.append(f"{singular(word.strip().lower())}^{exponent}")
            if known is None or known.dimensions is None or abs(exponent) > 9:
                return Unit(" ".join(text.lower().split()), dimensions=None)
            factor *= known.factor**exponent
            for base, times in known.dimensions:
                powers[base] = powers.get(base, 0) + times * exponent
            sign = raised = 1
    dimensions = tuple(sorted((base, power) for base, power in powers.items() if power))
    name = names[0].removesuffix("^1") if len(names) == 1 else " ".join(names)
    return Unit(_UNITS[name].name if name in _UNITS else name, factor, dimensions)


def singular(word: str) -> str:
    """Remove the ending of a plural."""
    if word in _UNITS:
        return word
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word

r"""Structures of the small set's problems: ranges of their numbers, wordings and answers."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


def _always(*_: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Structure:
    """Structure of a problem: ranges of its numbers, and several wordings.

    Attributes:
        name: unique name.
        ranges: smallest and largest value of each number, in the order of the wordings.
        solve: function from the numbers to the answer.
        wordings: texts with ``{0}``, ``{1}`` for the numbers, and placeholders for words, such as ``{name}``.
        keep: function that returns whether the numbers make a suitable problem.
        symmetric: whether the order of the numbers does not matter.
    """

    name: str
    ranges: tuple[tuple[int, int], ...]
    solve: Callable[..., Fraction | int]
    wordings: tuple[str, ...]
    keep: Callable[..., bool] = _always
    symmetric: bool = False


_ARITHMETIC = (
    Structure(
        "add",
        ((1, 50), (1, 20)),
        lambda a, b: a + b,
        ("What is {0} + {1}?", "Compute {0} + {1}.", "Add {0} and {1}.", "What do you get when you add {0} to {1}?"),
        symmetric=True,
    ),
    Structure(
        "subtract",
        ((1, 50), (1, 20)),
        lambda a, b: a - b,
        ("What is {0} - {1}?", "Compute {0} - {1}.", "What is {0} minus {1}?", "What is left of {0} without {1}?"),
        keep=lambda a, b: a >= b,
    ),
    Structure(
        "add_three",
        ((1, 9), (1, 9), (1, 9)),
        lambda a, b, c: a + b + c,
        ("What is {0} + {1} + {2}?", "Compute {0} + {1} + {2}.", "What is the sum of {0}, {1} and {2}?"),
        symmetric=True,
    ),
)

_LEFT, _RIGHT = r"\frac{{{0}}}{{{1}}}", r"\frac{{{2}}}{{{3}}}"
_TWO_FRACTIONS = ((1, 9), (2, 12), (1, 9), (2, 12))


def _proper(a: int, b: int, c: int, d: int) -> bool:
    return a < b and c < d


_FRACTIONS = (
    Structure(
        "add_fractions",
        _TWO_FRACTIONS,
        lambda a, b, c, d: Fraction(a, b) + Fraction(c, d),
        (
            f"What is ${_LEFT} + {_RIGHT}$?",
            f"Compute ${_LEFT} + {_RIGHT}$ and simplify.",
            f"Find the sum of ${_LEFT}$ and ${_RIGHT}$ in lowest terms.",
        ),
        keep=_proper,
    ),
    Structure(
        "subtract_fractions",
        _TWO_FRACTIONS,
        lambda a, b, c, d: Fraction(a, b) - Fraction(c, d),
        (
            f"What is ${_LEFT} - {_RIGHT}$?",
            f"Compute ${_LEFT} - {_RIGHT}$ and simplify.",
            f"By how much is ${_LEFT}$ larger than ${_RIGHT}$?",
        ),
        keep=lambda a, b, c, d: _proper(a, b, c, d) and a * d > c * b,
    ),
    Structure(
        "multiply_fractions",
        _TWO_FRACTIONS,
        lambda a, b, c, d: Fraction(a, b) * Fraction(c, d),
        (rf"What is ${_LEFT} \cdot {_RIGHT}$?", f"What is the product of ${_LEFT}$ and ${_RIGHT}$ in lowest terms?"),
        keep=_proper,
    ),
    Structure(
        "divide_fractions",
        _TWO_FRACTIONS,
        lambda a, b, c, d: Fraction(a, b) / Fraction(c, d),
        (rf"What is ${_LEFT} \div {_RIGHT}$?", f"Divide ${_LEFT}$ by ${_RIGHT}$ and simplify."),
        keep=_proper,
    ),
    Structure(
        "simplify",
        ((2, 90), (2, 90)),
        lambda a, b: Fraction(a, b),
        (f"Write ${_LEFT}$ in lowest terms.", f"Simplify ${_LEFT}$.", f"Reduce the fraction ${_LEFT}$ fully."),
        keep=lambda a, b: a < b and Fraction(a, b).denominator < b,
    ),
    Structure(
        "fraction_of",
        ((1, 9), (2, 10), (4, 120)),
        lambda a, b, c: Fraction(a * c, b),
        (f"What is ${_LEFT}$ of {{2}}?", f"Find ${_LEFT}$ of the number {{2}}."),
        keep=lambda a, b, c: a < b and c % b == 0,
    ),
)

_LINEAR_EQUATIONS = (
    Structure(
        "times_plus",
        ((2, 9), (1, 30), (1, 90)),
        lambda a, b, c: Fraction(c - b, a),
        (
            "Solve for {x}: ${0}{x} + {1} = {2}$.",
            "If ${0}{x} + {1} = {2}$, what is {x}?",
            "Find the value of {x} for which ${0}{x} + {1} = {2}$.",
        ),
        keep=lambda a, b, c: (c - b) % a == 0,
    ),
    Structure(
        "times_minus",
        ((2, 9), (1, 30), (1, 60)),
        lambda a, b, c: Fraction(c + b, a),
        ("Solve ${0}{x} - {1} = {2}$ for {x}.", "What number {x} makes ${0}{x} - {1} = {2}$ true?"),
        keep=lambda a, b, c: (c + b) % a == 0,
    ),
    Structure(
        "bracket",
        ((2, 9), (1, 15), (2, 120)),
        lambda a, b, c: Fraction(c, a) - b,
        ("Solve for {x}: ${0}({x} + {1}) = {2}$.", "Given that ${0}({x} + {1}) = {2}$, find {x}."),
        keep=lambda a, b, c: c % a == 0,
    ),
    Structure(
        "quotient",
        ((2, 9), (1, 20), (1, 40)),
        lambda a, b, c: Fraction(a * (c - b)),
        (
            r"Solve for {x}: $\frac{{{x}}}{{{0}}} + {1} = {2}$.",
            r"For which {x} is $\frac{{{x}}}{{{0}}} + {1}$ equal to {2}?",
        ),
    ),
    Structure(
        "both_sides",
        ((2, 12), (1, 30), (2, 12), (1, 40)),
        lambda a, b, c, d: Fraction(d - b, a - c),
        ("Solve for {x}: ${0}{x} + {1} = {2}{x} + {3}$.", "At which {x} are ${0}{x} + {1}$ and ${2}{x} + {3}$ equal?"),
        keep=lambda a, b, c, d: a != c and b != d,
    ),
)

_WORD_PROBLEMS = (
    Structure(
        "packs",
        ((2, 30), (2, 9), (2, 12)),
        lambda a, b, c: a + b * c,
        (
            "{name} has {0} {things} and buys {1} packs of {2} {things} each. How many {things} does {name} have now?",
            "There were {0} {things} on the shelf. Then {name} brought {1} boxes with {2} {things} in every box. "
            "How many {things} are there altogether?",
        ),
    ),
    Structure(
        "share",
        ((12, 120), (2, 12)),
        lambda a, b: Fraction(a, b),
        (
            "{name} shares {0} {things} equally among {1} friends. How many {things} does each friend get?",
            "{0} {things} are packed into {1} bags with the same number in each. How many {things} go into one bag?",
        ),
        keep=lambda a, b: a % b == 0 and a > b,
    ),
    Structure(
        "change",
        ((2, 9), (2, 12), (20, 100)),
        lambda a, b, c: c - a * b,
        (
            "{name} buys {0} notebooks at {1} dollars each and pays with {2} dollars. "
            "How many dollars of change are due?",
            "A ticket to the {place} is bought {0} times, for {1} dollars each. "
            "Of the {2} dollars that {name} saved, how many are left?",
        ),
        keep=lambda a, b, c: c % 10 == 0 and a * b < c,
    ),
    Structure(
        "journey",
        ((12, 90), (2, 8), (5, 60)),
        lambda a, b, c: a * b + c,
        (
            "{name} drives at {0} kilometers per hour for {1} hours and then another {2} kilometers to the {place}. "
            "How many kilometers is that in all?",
            "A train covers {0} kilometers every hour. After {1} hours it still has {2} kilometers to go. "
            "How long is its whole way, in kilometers?",
        ),
    ),
    Structure(
        "compare",
        ((5, 60), (2, 30)),
        lambda a, b: 2 * a + b,
        (
            "{name} has {0} {things}. {other} has {1} {things} more than {name}. "
            "How many {things} do they have together?",
            "On Monday {name} sold {0} {things}, and on Tuesday {1} more than on Monday. "
            "How many {things} were sold on the two days?",
        ),
    ),
    Structure(
        "halve",
        ((10, 90), (2, 30)),
        lambda a, b: Fraction(a - b, 2),
        (
            "Of {0} {things}, {name} gives {1} to {other} and puts half of the rest into a drawer. "
            "How many {things} are in the drawer?",
            "{name} picked {0} {things}, lost {1} of them on the way from the {place}, and split what was left evenly "
            "with {other}. How many {things} did {other} get?",
        ),
        keep=lambda a, b: a > b and (a - b) % 2 == 0,
    ),
    Structure(
        "fence",
        ((3, 40), (2, 30)),
        lambda a, b: 2 * (a + b),
        (
            "A rectangular garden behind the {place} is {0} meters long and {1} meters wide. "
            "How many meters of fence go around it?",
            "{name} walks once around a rectangular field with sides of {0} and {1} meters. "
            "How many meters does {name} walk?",
        ),
        keep=lambda a, b: a > b,
    ),
    Structure(
        "pages",
        ((90, 400), (5, 30), (2, 12)),
        lambda a, b, c: a - b * c,
        (
            "A book has {0} pages. {name} reads {1} pages a day for {2} days. How many pages are left?",
            "{name} must fold {0} flyers for the {place} and manages {1} in an hour. "
            "How many are still to be folded after {2} hours?",
        ),
        keep=lambda a, b, c: a > b * c,
    ),
    Structure(
        "ages",
        ((4, 20), (2, 4), (2, 15)),
        lambda a, b, c: a * b + c,
        (
            "{name} is {0} years old, and {other} is {1} times as old. How old will {other} be in {2} years?",
            "A tree at the {place} was {0} meters tall. It grew to {1} times that height, and then {2} meters more. "
            "How many meters tall is it now?",
        ),
    ),
    Structure(
        "part_of",
        ((12, 120), (2, 6)),
        lambda a, b: a - Fraction(a, b),
        (
            "Of the {0} visitors of the {place}, one in every {1} came by bicycle. How many did not?",
            "{name} divides {0} {things} into {1} equal heaps and gives one heap away. How many {things} remain?",
        ),
        keep=lambda a, b: a % b == 0,
    ),
    Structure(
        "average",
        ((1, 30), (1, 30), (1, 30)),
        lambda a, b, c: Fraction(a + b + c, 3),
        (
            "In three games {name} scored {0}, {1} and {2} points. What was the average per game?",
            "{name}, {other} and a friend found {0}, {1} and {2} {things}. They share them equally. "
            "How many does each of them get?",
        ),
        keep=lambda a, b, c: (a + b + c) % 3 == 0 and min(a, b, c) > 1,
        symmetric=True,
    ),
    Structure(
        "discount",
        ((20, 200), (10, 50)),
        lambda a, b: a - Fraction(a * b, 100),
        (
            "A coat costs {0} dollars. In the sale its price falls by {1} percent. What does it cost then, in dollars?",
            "The {place} had {0} visitors last week and {1} percent fewer this week. How many came this week?",
        ),
        keep=lambda a, b: b % 5 == 0 and a * b % 100 == 0,
    ),
)

#: Structures of each kind of problem.
KINDS: dict[str, tuple[Structure, ...]] = {
    "arithmetic": _ARITHMETIC,
    "fractions": _FRACTIONS,
    "linear_equations": _LINEAR_EQUATIONS,
    "word_problems": _WORD_PROBLEMS,
}

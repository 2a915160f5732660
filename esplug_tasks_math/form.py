"""Form of a final answer: which arithmetic it leaves undone."""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, TypeAlias

from esplug_tasks_math import bases, rationals, units
from esplug_tasks_math.answers import parse
from esplug_tasks_math.expressions import Node, expression, names, walk
from esplug_tasks_math.latex import Tokens, content
from esplug_tasks_math.limits import Unreadable
from esplug_tasks_math.relations import stated
from esplug_tasks_math.sets import as_set
from esplug_tasks_math.shapes import Answer, Expression, Interval, Items, Matrix, Ratio, Relation, Union

#: How exact the form of an answer must be: any; all arithmetic on numbers carried out; or also in lowest terms,
#: expanded or factored, and in the unit of the gold answer.
ExactForm: TypeAlias = Literal["off", "numbers", "strict"]
FORMS: tuple[ExactForm, ...] = ("off", "numbers", "strict")

#: Least bare power of ten that stands for a number in digits: 10^6 for 1000000.
LEAST_POWER = 10**6

_INFINITE = ((r"\infty",), ("-", r"\infty"), ("+", r"\infty"))
_PLAIN = ("sum", "product", "quotient", "negative", "power", "root", "number", "name", "pi", "e", "infinity")
_KINDS = dict.fromkeys(("sin", "cos", "tan", "cot", "sec", "csc"), "trigonometric") | {"binomial": "factorial"}
_SUMS = 2  # factors that are sums


def is_simplified(given: Answer, gold: Answer, exact_form: ExactForm) -> bool:
    """Return whether an answer is simplified as far as the gold answer is.

    If the gold answer consists of numbers, so must the answer. Otherwise it may leave undone only the kinds of
    operation on numbers that the gold answer leaves undone.
    """
    if exact_form == "off":
        return True
    strict = exact_form == "strict"
    if strict and isinstance(gold, Relation) and isinstance(given, Relation) and stated(gold) and not stated(given):
        return False
    wanted, wanted_units = _quantities(gold)
    found, found_units = _quantities(given)
    if strict and wanted_units and not found_units <= wanted_units:
        return False
    numbers = [rationals.number(leaf) for leaf in wanted if leaf not in _INFINITE]
    in_radians = wanted_units == {"degree"} and found_units <= {"radian"} and any(r"\pi" in leaf for leaf in found)
    if strict and in_radians:
        return False
    if all(numbers) and not in_radians:
        reduced = strict and all(number.reduced for number in numbers if number)
        powers = any(
            number.form in ("power", "scientific") or number.value.denominator > 1 for number in numbers if number
        )
        return all(_is_literal(leaf, powers=powers, reduced=reduced) for leaf in found)
    allowed = {kind for leaf in wanted for kind in undone(leaf, strict=strict)}
    left = {kind for leaf in found for kind in undone(leaf, strict=strict)}
    return left <= allowed and (not strict or ("factors" in left) == ("factors" in allowed))


def _quantities(answer: Answer) -> tuple[list[Tokens], set[str]]:
    """Return the expressions of an answer without their units, and the names of the units."""
    quantities = [units.split(leaf) for leaf in leaves(answer)]
    return [value for value, _ in quantities], {unit.name for _, unit in quantities if unit.name}


def leaves(answer: Answer) -> Iterator[Tokens]:
    """Yield the expressions that an answer consists of."""
    match answer:
        case Expression() | Relation() if (solutions := as_set(answer)) != answer:
            yield from leaves(solutions)
        case Expression(tokens):
            yield tokens
        case Items(_, items):
            for item in items:
                yield from leaves(item)
        case Interval(low, high):
            yield from leaves(low)
            yield from leaves(high)
        case Union(parts):
            for part in parts:
                yield from leaves(part)
        case Matrix(rows):
            for row in rows:
                for entry in row:
                    yield from leaves(entry)
        case Relation():
            side = stated(answer)
            for each in [side] if side else answer.sides:
                yield from leaves(parse(each))
        case Ratio(parts):
            yield from parts


def undone(leaf: Tokens, *, strict: bool = False) -> set[str]:
    """Return the kinds of operation that an expression leaves undone."""
    if any(len(content(token)) > 1 for token in leaf):
        return set()
    try:
        node = expression(leaf)
    except Unreadable:
        return set()
    return {kind for each in walk(node) for kind in _undone(each, strict=strict)}


def _is_literal(leaf: Tokens, *, powers: bool, reduced: bool) -> bool:
    if leaf in _INFINITE:
        return True
    number = rationals.number(leaf)
    if number is None or number.form == "quotient":
        return bases.based(leaf) is not None
    if number.form == "power" and not powers and number.value < LEAST_POWER:
        return False
    if number.form == "fraction" and number.value.denominator == 1:
        return _over_one(leaf)
    return number.reduced or not reduced


def _over_one(leaf: Tokens) -> bool:
    return leaf[-3:] == ("{", "1", "}") or leaf[-2:] == ("/", "1")


def _undone(node: Node, *, strict: bool) -> Iterator[str]:
    match node.head:
        case "sum":
            yield from _undone_sum(node, strict=strict)
        case "product":
            yield from _undone_product(node, strict=strict)
        case "quotient":
            yield from _undone_quotient(node, strict=strict)
        case "negative" if node.parts[0].head == "negative":
            yield "sign"
        case "power":
            yield from _undone_power(node, strict=strict)
        case "root":
            if _literal(node.parts[0]) is not None and _has_power(node.parts[1], _literal(node.parts[0])):
                yield "root"
        case head if head not in _PLAIN and not any(each.name for each in walk(node)):
            yield _KINDS.get(head, head)
    if strict and _sums(node) >= _SUMS:
        yield "factors"


def _undone_sum(node: Node, *, strict: bool) -> Iterator[str]:
    parts = list(_terms(node))
    terms = [_coefficient(part) for part in parts]
    if sum(_literal(part) is not None for part in parts) > 1:
        yield "sum"
    if any(count > 1 for key, count in Counter(key for _, key in terms if key).items()):
        yield "like terms"
    products = [part for part in parts if part.head == "product" and any(each.head == "sum" for each in part.parts)]
    if any(strict or not names(product) for product in products):
        yield "expansion"


def _terms(node: Node) -> Iterator[Node]:
    """Yield the terms of a sum, and of the sums in brackets in it."""
    for part in node.parts:
        inner = part.parts[0] if part.head == "negative" else part
        if inner.head == "sum":
            yield from _terms(inner)
        else:
            yield part


def _undone_product(node: Node, *, strict: bool) -> Iterator[str]:
    parts = list(_factors(node))
    constant = [part for part in parts if not names(part)]
    if sum(part.head == "sum" for part in constant) > 1:
        yield "expansion"
    if sum(_is_complex(part) for part in constant) > 1:
        yield "complex product"
    bases = [base for part in parts for base in _named_bases(part)]
    if strict and len(set(bases)) < len(bases):
        yield "product of powers of a name"
    if sum(_literal(part) is not None for part in parts) > 1:
        yield "product"
    powers = Counter(_power_base(part) for part in parts)
    joined = {_literal(part.parts[0]) for part in parts if part.head == "factorial"} - {None}
    if any(count > 1 and base and abs(base) != 1 for base, count in powers.items()):
        yield "product of powers"
    if any(base and base - 1 in joined for base in powers):
        yield "product of factorials"
    if sum(part.head == "root" and _literal(part.parts[1]) is not None for part in parts) > 1:
        yield "product of roots"


def _factors(node: Node) -> Iterator[Node]:
    """Yield the factors of a product, and of the products in brackets in it."""
    for part in node.parts:
        if part.head == "product":
            yield from _factors(part)
        else:
            yield part


def _power_base(factor: Node) -> Fraction | None:
    """Return the base of a power of numbers, or the number itself."""
    if factor.head == "power" and _literal(factor.parts[1]) is not None:
        return _literal(factor.parts[0])
    return _literal(factor)


def _undone_quotient(node: Node, *, strict: bool) -> Iterator[str]:
    top, bottom = node.parts
    if any(
        each.head == "quotient" for part in node.parts for each in _outside_powers(part) if _literal(each) is not None
    ):
        yield "fraction of fractions"
    (over, above), (under, below) = _coefficient(top), _coefficient(bottom)
    if set(above) & set(below) or (strict and set(_named_bases(top)) & set(_named_bases(bottom))):
        yield "cancellation"
    if _is_complex(bottom) and not names(bottom):
        yield "complex quotient"
    if strict and _is_sum(bottom):
        yield "division by a sum"
    if not under or over.denominator * under.denominator > 1:
        return
    if abs(under) > 1 and (over / under).denominator == 1:
        yield "quotient"
    if strict and (over / under).denominator < abs(under) and over:
        yield "lowest terms"


def _undone_power(node: Node, *, strict: bool) -> Iterator[str]:
    base, exponent = node.parts
    power = _literal(exponent)
    if strict and power is not None and base.head == "power" and names(base) and _literal(base.parts[1]) is not None:
        yield "power of a power"
    if power is None or names(base) or base.head in ("pi", "e"):
        return
    if power.denominator == 1 or (_literal(base) is not None and _has_power(base, Fraction(power.denominator))):
        yield "power"


def _named_bases(node: Node) -> Iterator[str]:
    """Yield the names that occur in a product, as they are or with a number as the exponent."""
    if node.head == "name" and node.name != "i":
        yield node.name
    elif node.head == "power" and _literal(node.parts[1]) is not None:
        yield from _named_bases(node.parts[0])
    elif node.head in ("product", "negative"):
        for part in node.parts:
            yield from _named_bases(part)


def _is_complex(node: Node) -> bool:
    return any(each.head == "name" and each.name == "i" for each in walk(node))


def _outside_powers(node: Node) -> Iterator[Node]:
    """Yield a node and the nodes inside it, but no exponents."""
    yield node
    for part in node.parts[:1] if node.head == "power" else node.parts:
        yield from _outside_powers(part)


def _literal(node: Node) -> Fraction | None:
    """Return the value of a number, or of a fraction of numbers, with or without a sign."""
    if node.head == "number":
        return node.value
    if node.head == "negative":
        value = _literal(node.parts[0])
        return None if value is None else -value
    if node.head == "quotient":
        top, bottom = map(_literal, node.parts)
        return None if top is None or not bottom else top / bottom
    return None


def _coefficient(node: Node) -> tuple[Fraction, tuple[Node, ...]]:
    """Split a term into a number and its other factors."""
    value = _literal(node)
    if value is not None:
        return value, ()
    if node.head == "negative":
        number, rest = _coefficient(node.parts[0])
        return -number, rest
    if node.head == "product":
        number, others = Fraction(1), list[Node]()
        for part in node.parts:
            value = _literal(part)
            if value is None:
                others.append(part)
            else:
                number *= value
        return number, tuple(sorted(others, key=repr))
    if node.head == "quotient":
        number, rest = _coefficient(node.parts[0])
        divisor = _literal(node.parts[1])
        return (number / divisor, rest) if divisor else (Fraction(1), (node,))
    return Fraction(1), (node,)


def _has_power(radicand: Node, index: Fraction | None) -> bool:
    """Return whether a number has a factor that is a perfect power, such as the 4 of 12 for a square root."""
    value = _literal(radicand)
    if value is None or not index or index.denominator > 1 or not 1 < index < 64:
        return False
    return any(_perfect(abs(part), int(index)) for part in (value.numerator, value.denominator))


def _perfect(number: int, index: int) -> bool:
    if number in (0, 1):
        return number == 0
    return any(number % prime**index == 0 for prime in range(2, 1000) if prime**index <= number)


def _sums(node: Node) -> int:
    """Count the factors of a product, or of a power, that are sums with variables."""
    if node.head == "power":
        power = _literal(node.parts[1]) or Fraction(0)
        return _is_sum(node.parts[0]) * _SUMS if power.denominator == 1 and power > 1 else 0
    if node.head == "product":
        return sum(_sums(part) if part.head == "power" else _is_sum(part) for part in node.parts)
    return 0


def _is_sum(node: Node) -> bool:
    return node.head == "sum" and bool(names(node))

"""Equality of two answers: compares their structure, with cheap comparisons before symbolic ones."""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from esplug_tasks_math import bases, choices, symbolic, units
from esplug_tasks_math.answers import parse, parse_list
from esplug_tasks_math.form import ExactForm, is_simplified
from esplug_tasks_math.latex import Tokens, content, spell, words
from esplug_tasks_math.measures import NONE, Unit
from esplug_tasks_math.rationals import rational
from esplug_tasks_math.relations import EQUALITIES, has_letters, is_name, label, stated
from esplug_tasks_math.sets import as_set, merged
from esplug_tasks_math.shapes import Answer, Expression, Interval, Items, Matrix, Ratio, Relation, Time, Union

_PER_DEGREE: Tokens = (r"\cdot", r"\frac", "{", r"\pi", "}", "{", "180", "}")
_LEAD = re.compile(r"(?!.*\b(?:or|nor|not|either|never)\b)[A-Za-z' ]*(?: is|:|=)")
_SUBSCRIPT = re.compile(r"_(?:\{[^{}]*\}|[0-9A-Za-z])")
_LONG_WORD, _PAIR = 4, 2


def same(given: Tokens, gold: Tokens, exact_form: ExactForm = "off") -> bool:
    """Return whether two answers are equal, and the given one is simplified as far as the gold one.

    Raises:
        Unreadable: ``given`` cannot be parsed, or the comparison is too much work.
    """
    letter = choices.choice(gold)
    if letter:
        return choices.chosen(given) == letter or (len(gold) > 1 and given == (letter.lower(),))
    if _is_text(gold) and not any(map(str.isdigit, gold)) and words(given) == words(gold):
        return True
    if len(given) > 1 and _LEAD.fullmatch(content(given[0])):  # \text{The answer is } 5
        given = given[1:]
    if given[0] in ("=", r"\approx"):
        given = given[1:]
    answer, wanted = parse(given), parse(gold)
    if isinstance(wanted, Relation) and not isinstance(answer, Relation) and set(wanted.signs) <= EQUALITIES:
        wanted = _value(wanted) or wanted
    if _same(answer, wanted):
        return is_simplified(answer, wanted, exact_form)
    if "," in given and "," in gold:  # 100,200 may be one number or two
        left, right = parse_list(given), parse_list(gold)
        return left is not None and right is not None and _same(left, right) and is_simplified(left, right, exact_form)
    return False


def _same(given: Answer, gold: Answer) -> bool:
    if given == gold:
        return True
    match given, gold:
        case Expression(left), Expression(right) if as_set(given) == given and as_set(gold) == gold:
            return _same_expression(left, right)
        case Relation(), Relation():
            return _same_relation(given, gold)
        case Relation(), _:
            found = _side(given) if set(given.signs) <= EQUALITIES else as_set(given)
            return found is not None and not isinstance(found, Relation) and _same(found, gold)
        case _, Relation():
            wanted = _value(gold) if set(gold.signs) <= EQUALITIES else as_set(gold)
            return wanted is not None and not isinstance(wanted, Relation) and _same(given, wanted)
        case (Time() as left, Time() as right):
            return left.same(right)
        case (Time(), _) | (_, Time()):
            return False
        case (Ratio(), _) | (_, Ratio()):
            return _same_ratio(given, gold)
        case Items("set", (item,)), Expression() | Items("tuple"):
            return _same(item, gold)
        case Items(), Items():
            return _same_items(given, gold)
        case Matrix(rows), Matrix(others):
            return len(rows) == len(others) and all(map(_in_order, rows, others))
        case (Matrix(rows), Items("tuple", items)) | (Items("tuple", items), Matrix(rows)):
            if all(len(row) == 1 for row in rows):
                return _in_order([row[0] for row in rows], items)
        case Expression(), Items("set", (item,)):
            return _same(given, item)
    if isinstance(gold, Matrix):  # [[1,2],[3,4]]
        listed = [_row(part) for part in _row(given)]
        return all(listed) and len(listed) == len(gold.rows) and all(map(_in_order, listed, gold.rows))
    return _same_sets(given, gold)


def _same_expression(given: Tokens, gold: Tokens) -> bool:
    if given == gold:
        return True
    left, unit = units.split(given)
    right, gold_unit = units.split(gold)
    same_digits = bases.same(given, gold)
    if same_digits is not None:
        return same_digits
    if _is_text(left) or _is_text(right):
        return words(given) == words(gold)
    if not left or not right:
        return False
    if {unit.name, gold_unit.name} == {"degree", "radian"} and r"\pi" in left + right:
        unit, gold_unit = (NONE if each.name == "radian" else each for each in (unit, gold_unit))
    x, y = rational(left), rational(right)
    if not units.may_be_same(unit, gold_unit, x):
        return _is_percentage(x, unit, y, gold_unit)
    left = units.scaled(left, unit, gold_unit)
    if x is not None and y is not None and unit.name == gold_unit.name:
        return x == y
    if x is not None and y is not None and NONE in (unit, gold_unit):
        return x == y or _is_percentage(x, unit, y, gold_unit)
    if "degree" in (unit.name, gold_unit.name) and NONE in (unit, gold_unit) and r"\pi" in left + right:
        left, right = (left + _PER_DEGREE if unit.name else left), (right + _PER_DEGREE if gold_unit.name else right)
    return left == right or symbolic.same_value(left, right)


def _is_percentage(x: Fraction | None, unit: Unit, y: Fraction | None, gold_unit: Unit) -> bool:
    """Return whether a percentage equals a number without a percent sign, written as a fraction of one."""
    if x is None or y is None:
        return False
    if unit.name == "%" and gold_unit == NONE:
        return x / 100 == y and (y.denominator > 1 or y in (0, 1))  # 500% for 5 is not simplified
    return gold_unit.name == "%" and unit == NONE and x == y / 100


def _is_text(answer: Tokens) -> bool:
    """Return whether the answer consists of words, as text or as single letters."""
    if any(len(content(token)) > 1 for token in answer):
        return True
    return len(answer) >= _LONG_WORD and all(token.isalpha() for token in answer)


def _same_ratio(given: Answer, gold: Answer) -> bool:
    match given, gold:
        case Ratio(parts), Ratio(others):
            if len(parts) != len(others):
                return False
            products = [
                ((*_group(a), *_group(d)), (*_group(b), *_group(c))) for (a, c), (b, d) in _neighbors(parts, others)
            ]
            return all(symbolic.same_value(*pair) for pair in products) and not _is_zero(parts)
        case (Ratio((top, bottom)), Expression(other)) | (Expression(other), Ratio((top, bottom))):
            value = rational((r"\frac", "{", *top, "}", "{", *bottom, "}"))
            return value is not None and value.denominator > 1 and value == rational(other)
    return False


def _neighbors(parts: tuple[Tokens, ...], others: tuple[Tokens, ...]) -> list[tuple[tuple[Tokens, Tokens], ...]]:
    pairs = list(zip(parts, others, strict=True))
    return [((a, c), (b, d)) for (a, b), (c, d) in pairwise(pairs)]


def _group(part: Tokens) -> Tokens:
    return ("(", *part, ")")


def _is_zero(parts: tuple[Tokens, ...]) -> bool:
    return all(rational(part) == 0 for part in parts)


def _same_items(given: Items, gold: Items) -> bool:
    kinds = {given.kind, gold.kind}
    if kinds == {"set"}:
        return _covered(given.items, gold.items) and _covered(gold.items, given.items)
    if len(given.items) != len(gold.items) or kinds == {"set", "tuple"}:
        return False
    if kinds == {"list", "tuple"}:
        named, point = (given, gold) if given.kind == "list" else (gold, given)
        coordinates = _coordinates(named)
        if coordinates is not None:
            return _in_order(coordinates, point.items) if named is given else _in_order(point.items, coordinates)
        return len(point.items) > _PAIR and _in_order(given.items, gold.items)
    if "tuple" in kinds:
        return _in_order(given.items, gold.items)
    left, right = _coordinates(given), _coordinates(gold)
    if (left is None) != (right is None):
        return _in_order(left or given.items, right or gold.items)
    return _matched(given.items, gold.items)


def _coordinates(items: Items) -> list[Answer] | None:
    """Return the values of ``x = 1, y = 2`` in the order of their names, or ``None`` if not all items are named."""
    named: dict[Tokens, Answer] = {}
    for item in items.items:
        side = _side(item) if isinstance(item, Relation) and label(item) else None
        if side is None or not isinstance(item, Relation) or label(item) in named:
            return None
        named[label(item)] = side
    return [named[name] for name in sorted(named)]


def _row(answer: Answer) -> Sequence[Answer]:
    match answer:
        case Items("tuple", items):
            return items
        case Interval(low, high, (True, True)):
            return (low, high)
    return ()


def _in_order(given: Sequence[Answer], gold: Sequence[Answer]) -> bool:
    return len(given) == len(gold) and all(map(_same, given, gold))


def _covered(some: Sequence[Answer], others: Sequence[Answer]) -> bool:
    return all(any(_same(each, other) for other in others) for each in some)


def _matched(given: Sequence[Answer], gold: Sequence[Answer]) -> bool:
    """Return whether each item pairs with one of the others. Pairs items with equal tokens first."""
    left = list(gold)
    rest = []
    for item in given:
        if item in left:
            left.remove(item)
        else:
            rest.append(item)
    for item in rest:
        partner = next((index for index, other in enumerate(left) if _same(item, other)), None)
        if partner is None:
            return False
        del left[partner]
    return not left


def _same_sets(given: Answer, gold: Answer) -> bool:
    left, right = (as_set(answer) if isinstance(answer, Expression) else answer for answer in (given, gold))
    match left, right:
        case Interval(low, high, closed), Interval(other_low, other_high, other_closed):
            return closed == other_closed and _same(low, other_low) and _same(high, other_high)
        case (Interval() as interval, Items("tuple", items)) | (Items("tuple", items), Interval() as interval):
            # (1,2) is a point or an interval.
            return interval.closed == (False, False) and _in_order((interval.low, interval.high), items)
        case (Items("list", items), Union(parts)) | (Union(parts), Items("list", items)):
            return _matched([as_set(item) for item in items], parts)
        case (Union(), Union() | Interval()) | (Interval(), Union()):
            parts, others = (merged(each.parts if isinstance(each, Union) else (each,)) for each in (left, right))
            return _matched(parts, others)
    return False


def _value(gold: Relation) -> Answer | None:
    """Return the value of a gold answer such as ``x = 5`` or ``|AB| = 5``, which may be given without its left side."""
    if label(gold):
        return _side(gold)
    left, right = gold.sides[0], gold.sides[-1]
    operated = re.search(r"[0-9+^!-]", _SUBSCRIPT.sub("", spell(left)))
    named = has_letters(left) and not has_letters(right) and not operated
    return parse(right) if named and gold.signs == ("=",) else None


def _side(relation: Relation) -> Answer | None:
    side = stated(relation)
    return parse(side) if side else None


def _same_relation(given: Relation, gold: Relation) -> bool:
    if set(given.signs) | set(gold.signs) <= EQUALITIES:
        return _same_equation(given, gold)
    left, right = as_set(given), as_set(gold)
    if not isinstance(left, Relation) and not isinstance(right, Relation):
        return _same_variable(given, gold) and _same(left, right)
    if given.signs == gold.signs and len(given.sides) == len(gold.sides):
        return all(_same(parse(side), parse(other)) for side, other in zip(given.sides, gold.sides, strict=True))
    return False


def _same_equation(given: Relation, gold: Relation) -> bool:
    wanted, found = stated(gold), stated(given)
    if wanted and label(gold):
        if found and label(given) == label(gold):
            return _same(parse(found), parse(wanted))
        if _renamed(given, gold):
            return True
        if not has_letters(wanted):  # x = 5 is a solution; 2x = 10 is a problem
            return False
    if len(given.sides) != _PAIR or len(gold.sides) != _PAIR:
        return False
    return given.sides == gold.sides[::-1] or symbolic.same_zeros(_difference(given), _difference(gold))


def _same_variable(given: Relation, gold: Relation) -> bool:
    names = [{side for side in relation.sides if is_name(side)} for relation in (given, gold)]
    return names[0] == names[1]


def _renamed(given: Relation, gold: Relation) -> bool:
    """Return whether two functions differ only in the name of their variable: ``f(n) = n^2`` and ``f(x) = x^2``."""
    left, right = given.sides[0], gold.sides[0]
    if len(left) != 4 or len(right) != 4 or left[:2] != right[:2] or left[1] != "(" or left[3] != ")" != right[3]:
        return False
    if not (left[2].isalpha() and right[2].isalpha()) or right[2] in given.sides[-1]:
        return False
    body = tuple(right[2] if token == left[2] else token for token in given.sides[-1])
    return _same(parse(body), parse(gold.sides[-1]))


def _difference(relation: Relation) -> Tokens:
    left, right = relation.sides
    return ("(", *left, ")", "-", "(", *right, ")")

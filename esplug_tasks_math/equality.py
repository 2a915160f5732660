r"""Equality of two answers: compares their structure, with cheap comparisons before symbolic ones."""

import re
from collections.abc import Sequence
from fractions import Fraction

from esplug_tasks_math import symbolic, units
from esplug_tasks_math.answers import (
    Answer,
    Expression,
    Interval,
    Items,
    Matrix,
    Relation,
    Union,
    as_set,
    has_letters,
    is_name,
    parse,
    parse_list,
)
from esplug_tasks_math.latex import Tokens, content, spell, words
from esplug_tasks_math.rationals import rational

_BASE = re.compile(r"-?[0-9A-Z]+_(?:[0-9]+|\{[0-9]+\})")
_CHOICE = re.compile(r"(?:\\text\{)?\(?([A-J])(?:\)|\}|\.|:|$)(.*)", re.DOTALL)
_ONE_CHOICE = re.compile(r"(?:\\text\{)?\(?([A-J])\)?\}?")
_LETTER = re.compile(r"(?<![A-Za-z])[A-J](?![A-Za-z])")
_PER_DEGREE: Tokens = (r"\cdot", r"\frac", "{", r"\pi", "}", "{", "180", "}")
_LONG_WORD = 4


def same(given: Tokens, gold: Tokens) -> bool:
    """Return whether two answers with different tokens are equal.

    Raises:
        Unreadable: ``given`` cannot be parsed.
    """
    if _ONE_CHOICE.fullmatch(spell(gold)):
        return _same_choice(given, gold)
    if len(given) > 1 and content(given[0]).endswith((" is", ":", "=")):  # \text{The answer is } 5
        given = given[1:]
    if given[0] in ("=", r"\approx"):
        given = given[1:]
    wanted = parse(gold)
    if _same(parse(given), wanted):
        return True
    if "," in given and "," in gold:  # 100,200 may be one number or two
        left, right = parse_list(given), parse_list(gold)
        return left is not None and right is not None and _same(left, right)
    return False


def _same(given: Answer, gold: Answer) -> bool:
    if given == gold:
        return True
    match given, gold:
        case Expression(left), Expression(right):
            return _same_expression(left, right)
        case Relation(), Relation():
            return _same_relation(given, gold)
        case Relation(), _:
            found = as_set(given) if isinstance(gold, Interval | Union) else _found(given, gold)
            return not isinstance(found, Relation) and _same(found, gold)
        case _, Relation(sides, signs):
            wanted = as_set(gold) if isinstance(given, Interval | Union) else None
            if set(signs) <= {"=", r"\approx"} and is_name(sides[0]):
                wanted = parse(sides[-1])
            return wanted is not None and not isinstance(wanted, Relation) and _same(given, wanted)
        case Items(), Items():
            return _same_items(given, gold)
        case (Interval() | Union(), _) | (_, Interval() | Union()):
            return _same_sets(given, gold)
        case Matrix(rows), Matrix(others):
            return len(rows) == len(others) and all(map(_in_order, rows, others))
        case (Matrix(rows), Items("tuple", items)) | (Items("tuple", items), Matrix(rows)):
            return all(len(row) == 1 for row in rows) and _in_order([row[0] for row in rows], items)
        case Items("set", (item,)), Expression():
            return _same(item, gold)
        case Expression(), Items("set", (item,)):
            return _same(given, item)
    return False


def _same_expression(given: Tokens, gold: Tokens) -> bool:
    if given == gold:
        return True
    left, unit = units.split(given)
    right, gold_unit = units.split(gold)
    if _is_text(left) or _is_text(right):
        return words(given) == words(gold)
    if not units.may_be_same(unit, gold_unit):
        return False
    if "_" in left + right and (_BASE.fullmatch(spell(left)) or _BASE.fullmatch(spell(right))):
        return spell(left) == spell(right)
    x, y = rational(left), rational(right)
    if x is not None and y is not None:
        return x == y or (unit != gold_unit and _same_percentage(x, unit, y, gold_unit))
    if unit != gold_unit and "°" in (unit, gold_unit) and (unit and gold_unit) == "" and r"\pi" in left + right:
        left, right = (left + _PER_DEGREE if unit else left), (right + _PER_DEGREE if gold_unit else right)
    return left == right or symbolic.same_value(left, right)


def _same_percentage(x: Fraction, unit: str, y: Fraction, gold_unit: str) -> bool:
    """Return whether a percentage equals a number without a percent sign, written as a fraction of one."""
    return (unit == "%" and x / 100 == y) or (gold_unit == "%" and x == y / 100)


def _is_text(answer: Tokens) -> bool:
    """Return whether the answer consists of words, as text or as single letters."""
    if any(len(content(token)) > 1 for token in answer):
        return True
    return len(answer) >= _LONG_WORD and all(token.isalpha() for token in answer)


def _same_choice(given: Tokens, gold: Tokens) -> bool:
    wanted = _ONE_CHOICE.fullmatch(spell(gold))
    text = spell(given)
    if len(given) > 1 and len(gold) > 1:  # both have brackets: (c) is (C)
        text = text.replace("(" + text[1:2], "(" + text[1:2].upper(), 1)
    found = _CHOICE.match(text)
    if found is None:
        found = _CHOICE.match(spell(_value_of(given)))
    return bool(found and wanted and found[1] == wanted[1] and not _LETTER.search(found[2]))


def _value_of(given: Tokens) -> Tokens:
    return given[given.index("=") + 1 :] if "=" in given else given


def _same_items(given: Items, gold: Items) -> bool:
    kinds = {given.kind, gold.kind}
    if kinds == {"set"}:
        return _covered(given.items, gold.items) and _covered(gold.items, given.items)
    if kinds == {"set", "tuple"} or len(given.items) != len(gold.items):
        return False
    if "tuple" in kinds or _names_order(given.items) != _names_order(gold.items):
        return _in_order(given.items, gold.items)
    return _matched(given.items, gold.items)


def _names_order(items: Sequence[Answer]) -> bool:
    """Return whether every item names its variable, as in ``x = 1, y = 2``."""
    names = {item.sides[0] for item in items if isinstance(item, Relation) and is_name(item.sides[0])}
    return len(names) == len(items)


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
    match given, gold:
        case Interval(low, high, closed), Interval(other_low, other_high, other_closed):
            return closed == other_closed and _same(low, other_low) and _same(high, other_high)
        case (Interval() as interval, Items(kind, items)) | (Items(kind, items), Interval() as interval):
            # [1,2] may be a list, and (1,2) an interval if a set is expected.
            alike = (kind == "list" and interval.closed == (True, True)) or (kind == "tuple" and interval.spelt_as_pair)
            return alike and _in_order((interval.low, interval.high), items)
        case Union(parts), Union(others):
            return _matched(parts, others)
    return False


def _found(given: Relation, gold: Answer) -> Answer:
    """Return the answer that a relation states: the last side of ``x = 2 + 3 = 5``."""
    first, last = given.sides[0], given.sides[-1]
    if not set(given.signs) <= {"=", r"\approx"}:
        return given
    if is_name(first) or (has_letters(first) and last != ("0",)):
        return parse(last)
    if r"\approx" in given.signs:  # in sqrt(2) = about 1.41, the answer is the first side
        return parse(first)
    return parse(last) if all(_same(parse(side), gold) for side in given.sides) else given


def _same_relation(given: Relation, gold: Relation) -> bool:
    if set(given.signs) | set(gold.signs) <= {"=", r"\approx"}:
        if given.sides[0] == gold.sides[0] and is_name(gold.sides[0]):
            return _same(parse(given.sides[-1]), parse(gold.sides[-1]))
        if _renamed(given, gold):
            return True
        if len(given.sides) == len(gold.sides) == 2:
            if given.sides == gold.sides[::-1]:
                return True
            return symbolic.same_zeros(_difference(given), _difference(gold))
        return False
    left, right = as_set(given), as_set(gold)
    if not isinstance(left, Relation) and not isinstance(right, Relation):
        return _same_variable(given, gold) and _same(left, right)
    if given.signs == gold.signs and len(given.sides) == len(gold.sides):
        return all(_same(parse(side), parse(other)) for side, other in zip(given.sides, gold.sides, strict=True))
    return False


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

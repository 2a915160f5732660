r"""Parser for the structure of an answer: lists, tuples, sets, intervals, matrices, relations and expressions."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from esplug_tasks_math.latex import Tokens, Unreadable, content, group, spell

MOST_ITEMS = 64

_INEQUALITIES = ("<", ">", r"\leq", r"\geq")
_SIGNS = frozenset({"=", r"\neq", r"\approx", r"\equiv", r"\in", r"\subset", r"\subseteq", *_INEQUALITIES})
_OPENING, _CLOSING = frozenset({"(", "[", "{", r"\{", r"\langle"}), frozenset({")", "]", "}", r"\}", r"\rangle"})
_AND, _OR = frozenset({",", ";", r"\text{and}", r"\text{, and}", r"\text{,and}"}), frozenset({r"\text{or}"})
_NO_LETTERS = frozenset(
    rf"\{name}"
    for name in ("frac", "sqrt", "cdot", "pi", "infty", "binom", "pm", "mp", "ln", "log", "exp", "sin", "cos", "tan")
)
_MATRIX = re.compile(r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}")
_THOUSANDS = re.compile(r"[-+]?(?:\\\$)?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])")


@dataclass(frozen=True, slots=True)
class Expression:
    """An answer without structure: a number, a formula, a word or a quantity."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Items:
    """Several answers: ``1, 2`` (a list, in any order), ``(1,2)`` (a tuple), ``\\{1,2\\}`` (a set)."""

    kind: Literal["list", "tuple", "set"]
    items: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval whose ends may be open or closed. ``(a,b)`` may also mean a point."""

    low: "Answer"
    high: "Answer"
    closed: tuple[bool, bool]
    spelt_as_pair: bool = False


@dataclass(frozen=True, slots=True)
class Union:
    """A union of sets, in any order."""

    parts: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries; a vector is a matrix of one column."""

    rows: tuple[tuple["Answer", ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain ``side sign side ...``, such as ``x = 5`` or ``1 < x \\leq 2``."""

    sides: tuple[Tokens, ...]
    signs: tuple[str, ...]


Answer: TypeAlias = Expression | Items | Interval | Union | Matrix | Relation


def parse(tokens: Tokens) -> Answer:
    """Parse the structure of an answer.

    Raises:
        Unreadable: the brackets do not match, or there are more than 64 parts.
    """
    tokens = _bare(tokens)
    if tokens in ((r"\emptyset",), (r"\{", r"\}")):
        return Items("set", ())
    if tokens and _MATRIX.fullmatch(tokens[0]) and tokens[-1].startswith(r"\end"):
        return _matrix(tokens)
    named = tokens.count("=") == 1 and "," not in tokens[: tokens.index("=")]  # x = 1,000
    if not _THOUSANDS.match(spell(tokens[tokens.index("=") + 1 :] if named else tokens)):
        listed = _list(tokens)
        if listed:
            return listed
    sides = list(_split(tokens, _SIGNS.__contains__))
    if len(sides) > 1:
        signs = tuple(sign for _, sign in sides[:-1])
        return _relation(tuple(side for side, _ in sides), signs)
    parts = [part for part, _ in _split(tokens, r"\cup".__eq__)]
    if len(parts) > 1:
        return Union(tuple(as_set(parse(part)) for part in parts))
    return _bracketed(tokens) or _either_sign(tokens) or Expression(tokens)


def parse_list(tokens: Tokens) -> Answer | None:
    """Parse commas as separators even if they could group the digits of one number."""
    return _list(_bare(tokens))


def as_set(answer: Answer) -> Answer:
    r"""Reinterpret ``(a,b)`` as an interval and ``x > 2`` as a set of numbers."""
    match answer:
        case Items("tuple", (low, high)):
            return Interval(low, high, (False, False), spelt_as_pair=True)
        case Relation(sides, signs) if all(sign in _INEQUALITIES for sign in signs):
            return _solutions(sides, signs) or answer
    return answer


def is_name(tokens: Tokens) -> bool:
    r"""Return whether tokens are a name: ``x``, ``m_{\max}``, ``f(x)``, ``\angle ABC``, ``SRAC``."""
    text = re.sub(r"_(?:\{[^{}]*\}|.)|\([A-Za-z, ]*\)|'", "", spell(tokens))
    if re.fullmatch(r"\([A-Za-z](?:,[A-Za-z])+\)", spell(tokens)):  # (x,y)
        return True
    return bool(text) and not re.search(r"[0-9+\-/^!*]|\\(?:frac|sqrt|cdot|pi)\b", text) and has_letters(tokens)


def has_letters(tokens: Tokens) -> bool:
    """Return whether the tokens contain a variable or a word."""
    return any((token[-1:].isalpha() and token not in _NO_LETTERS) or content(token) for token in tokens)


def _bare(tokens: Tokens) -> Tokens:
    while True:
        inner = _inside(tokens, "{", "}") or _inside(tokens, "(", ")")
        if inner is None or len(list(_split(inner, _AND.__contains__))) > 1:
            return tokens
        tokens = inner


def _inside(tokens: Tokens, opening: str, closing: str) -> Tokens | None:
    """Return the tokens inside one pair of brackets around all of them, or ``None`` if there is no such pair."""
    if len(tokens) < 2 or tokens[0] != opening or tokens[-1] != closing:
        return None
    depth = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0:
            return tokens[1:-1] if index == len(tokens) - 1 else None
    return None


def _split(tokens: Tokens, separates: Callable[[str], bool]) -> Iterator[tuple[Tokens, str]]:
    """Split outside all brackets, and yield each piece with the separator after it (``""`` for the last)."""
    depth = start = 0
    for index, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth < 0:
            raise Unreadable("brackets do not match")
        if depth == 0 and separates(token):
            yield tokens[start:index], token
            start = index + 1
    yield tokens[start:], ""


def _pieces(tokens: Tokens) -> list[Tokens]:
    pieces = [piece for piece, _ in _split(tokens, (_AND | _OR).__contains__) if piece]
    if len(pieces) > MOST_ITEMS:
        raise Unreadable("too many parts")
    return pieces


def _list(tokens: Tokens) -> Answer | None:
    pieces = _pieces(tokens)
    if len(pieces) < 2:
        return None
    parsed = [parse(piece) for piece in pieces]
    if r"\text{or}" in tokens or r"\text{and}" not in tokens:
        sets = [as_set(answer) for answer in parsed]
        if all(isinstance(part, Interval | Union) for part in sets) and r"\text{or}" in tokens:
            return Union(tuple(sets))
    return Items("list", _flat(parsed))


def _flat(answers: list[Answer]) -> tuple[Answer, ...]:
    """Flatten lists, such as the two values of a plus-minus, into one list."""
    return tuple(
        item
        for answer in answers
        for item in (answer.items if isinstance(answer, Items) and answer.kind == "list" else [answer])
    )


def _relation(sides: tuple[Tokens, ...], signs: tuple[str, ...]) -> Answer:
    if signs == (r"\in",) and is_name(sides[0]):
        return as_set(parse(sides[1]))
    if r"\pm" in sides[-1] and set(signs) == {"="}:
        answer = parse(sides[-1])
        if isinstance(answer, Items):
            return answer
    return Relation(sides, signs)


def _solutions(sides: tuple[Tokens, ...], signs: tuple[str, ...]) -> Answer | None:
    minus, plus = Expression(("-", r"\infty")), Expression((r"\infty",))
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
        sides, signs = sides[::-1], tuple(_mirrored(sign) for sign in signs)
    if len(sides) == 3 and all(sign in (">", r"\geq") for sign in signs):
        sides, signs = sides[::-1], tuple(_mirrored(sign) for sign in signs[::-1])
    closed = tuple(sign in (r"\leq", r"\geq") for sign in signs)
    if len(sides) == 2 and is_name(sides[0]):
        bound = parse(sides[1])
        upper = signs[0] in ("<", r"\leq")
        return Interval(minus, bound, (False, closed[0])) if upper else Interval(bound, plus, (closed[0], False))
    if len(sides) == 3 and is_name(sides[1]) and all(sign in ("<", r"\leq") for sign in signs):
        return Interval(parse(sides[0]), parse(sides[2]), (closed[0], closed[1]))
    return None


def _mirrored(sign: str) -> str:
    return {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}[sign]


def _bracketed(tokens: Tokens) -> Answer | None:
    inner = _inside(tokens, r"\{", r"\}")
    if inner is not None:
        described = [part for part, _ in _split(inner, (lambda token: token in ("|", ":")))]
        if len(described) == 2 and is_name(described[0][:1]):
            return as_set(parse(described[1]))
        return Items("set", _flat([parse(piece) for piece in _pieces(inner)]))
    inner = _inside(tokens, r"\langle", r"\rangle")
    if inner is None and tokens[:1] in (("(",), ("[",)) and tokens[-1:] in ((")",), ("]",)):
        inner = _inside(tokens, tokens[0], tokens[-1])
    pieces = _pieces(inner) if inner else []
    if len(pieces) < 2:
        return None
    closed = tokens[0] == "[", tokens[-1] == "]"
    unbounded = pieces[0] == ("-", r"\infty") or pieces[-1] in ((r"\infty",), ("+", r"\infty"))
    items = tuple(parse(piece) for piece in pieces)
    if len(items) == 2 and (any(closed) or unbounded):
        return Interval(items[0], items[1], closed)
    return Items("tuple", items) if closed[0] == closed[1] else None


def _either_sign(tokens: Tokens) -> Answer | None:
    if r"\pm" not in tokens and "\\mp" not in tokens:
        return None
    signs = ({r"\pm": "+", r"\mp": "-"}, {r"\pm": "-", r"\mp": "+"})
    both = [tuple(sign.get(token, token) for token in tokens) for sign in signs]
    return Items("list", tuple(parse(each[1:] if each[:1] == ("+",) else each) for each in both))


def _matrix(tokens: Tokens) -> Matrix:
    start = group(tokens, 1) if tokens[0] == r"\begin{array}" and tokens[1:2] == ("{",) else 1
    start += tokens[0] == r"\begin{array}" and start == 1  # \begin{array}{c}: one token without braces
    rows = [row for row, _ in _split(tokens[start:-1], r"\\".__eq__) if row]
    entries = tuple(tuple(parse(entry) for entry, _ in _split(row, "&".__eq__)) for row in rows)
    if len(entries) * max(map(len, entries), default=0) > MOST_ITEMS:
        raise Unreadable("too large a matrix")
    return Matrix(entries)

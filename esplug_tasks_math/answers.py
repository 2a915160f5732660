"""Parser for the structure of an answer: lists, tuples, sets, intervals, matrices, relations and expressions."""

import re
from collections.abc import Callable, Iterator

from esplug_tasks_math import ratios
from esplug_tasks_math.latex import Tokens, spell
from esplug_tasks_math.limits import MOST_ITEMS, Unreadable
from esplug_tasks_math.relations import SIGNS, is_name
from esplug_tasks_math.sets import as_set, intersection, merged, without
from esplug_tasks_math.shapes import Answer, Expression, Interval, Items, Matrix, Relation, Union

_OPENING, _CLOSING = frozenset({"(", "[", "{", r"\{", r"\langle"}), frozenset({")", "]", "}", r"\}", r"\rangle"})
_AND = frozenset({",", ";", "&", r"\text{and}", r"\text{, and}", r"\text{,and}"})
_OR = frozenset({r"\text{or}", r"\text{, or}", r"\text{,or}"})
_BOTH = frozenset({r"\text{both}", r"\text{either}"})
_MATRIX = re.compile(r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}")
_THOUSANDS = re.compile(r"[-+]?(?:\\\$)?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9,])")


def parse(tokens: Tokens) -> Answer:
    """Parse the structure of an answer.

    Raises:
        Unreadable: the brackets do not match, or there are more than 64 parts.
    """
    tokens = _bare(_english(tokens[1:] if tokens[:1] and tokens[0] in _BOTH else tokens))
    if tokens in ((r"\emptyset",), (r"\{", r"\}")):
        return Items("set", ())
    if tokens and _MATRIX.fullmatch(tokens[0]) and tokens[-1].startswith(r"\end"):
        return _matrix(tokens)
    named = tokens.count("=") == 1 and "," not in tokens[: tokens.index("=")]  # x = 1,000
    if not _THOUSANDS.match(spell(tokens[tokens.index("=") + 1 :] if named else tokens)):
        listed = _list(tokens)
        if listed:
            return listed
    sides = list(_split(tokens, SIGNS.__contains__))
    if len(sides) > 1:
        signs = tuple(sign for _, sign in sides[:-1])
        return _relation(tuple(side for side, _ in sides), signs)
    parts = [part for part, _ in _split(tokens, r"\cup".__eq__)]
    if len(parts) > 1:
        return Union(tuple(as_set(parse(part)) for part in parts))
    return _bracketed(tokens) or _difference(tokens) or _colon(tokens) or _either_sign(tokens) or Expression(tokens)


def parse_list(tokens: Tokens) -> Answer | None:
    """Parse commas as separators even if they could group the digits of one number."""
    listed = _list(_bare(tokens))
    if isinstance(listed, Items) and any(
        isinstance(item, Expression) and any(len(token) > 1 and token.startswith("0") for token in item.tokens[:1])
        for item in listed.items
    ):
        return None  # the 000 of 1,000 is no item
    return listed


def _bare(tokens: Tokens) -> Tokens:
    while True:
        inner = _inside(tokens, "{", "}") or _inside(tokens, "(", ")")
        square = _inside(tokens, "[", "]")
        inner = square if square and square[0].startswith(r"\begin") else inner
        if inner is None or ((not inner[:1] or not inner[0].startswith(r"\begin")) and len(_pieces(inner)) > 1):
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
    groups = [group for group, _ in _split(tokens, ";".__eq__) if group]
    if len(groups) > 1 and "," in tokens:  # x=1, y=2; x=3, y=4
        return Items("list", tuple(parse(group) for group in groups))
    pieces = _pieces(tokens)
    if len(pieces) < 2:
        return None
    parsed = [parse(piece) for piece in pieces]
    sets = [as_set(answer) for answer in parsed]
    if not _OR.isdisjoint(tokens):
        if all(isinstance(part, Interval | Union) for part in sets):
            return Union(tuple(sets)) if any(map(_is_no_point, parsed)) else Items("list", tuple(parsed))
    elif all(isinstance(answer, Relation) for answer in parsed) and _one_name(parsed):
        between = intersection(sets)
        if isinstance(between, Interval):
            apart = r"\text{and}" not in tokens and merged((between,)) == ()
            return Union(tuple(sets)) if apart else between
    return Items("list", _flat(parsed))


def _is_no_point(answer: Answer) -> bool:
    return not isinstance(answer, Items)


def _one_name(relations: list[Answer]) -> bool:
    names = {side for each in relations if isinstance(each, Relation) for side in each.sides if is_name(side)}
    return len(names) == 1


def _english(tokens: Tokens) -> Tokens:
    """Rewrite the French ``]2,5[`` as ``(2,5)``."""
    brackets = [token for token in tokens if token in ("[", "]")]
    if r"\sqrt" in tokens or not brackets or (brackets[0] == "[" and brackets[-1] == "]"):
        return tokens
    written, depth = [], 0
    for token in tokens:
        if token in ("(", ")"):
            depth += 1 if token == "(" else -1
        elif token in ("[", "]") and depth in (0, 1):
            opens = depth == 0
            depth = 1 - depth
            token = token if (token == "[") == opens else "(" if opens else ")"
        written.append(token)
    return tuple(written)


def _difference(tokens: Tokens) -> Answer | None:
    r"""Parse a line without points: ``\mathbb{R} \setminus \{2\}``."""
    parts = [part for part, _ in _split(tokens, (lambda token: token in (r"\setminus", r"\backslash")))]
    match [parse(part) for part in parts] if len(parts) == 2 else []:
        case (whole, Items("set", (point,))):
            return without(as_set(whole), point)
    return None


def _colon(tokens: Tokens) -> Answer | None:
    return ratios.time(tokens) or ratios.ratio(tokens)


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
    if signs == ("=",) and sides[0][:1] == ("(",) and is_name(sides[0]):  # (x,y) = (1,2)
        names, point = _pieces(sides[0][1:-1]), parse(sides[1])
        if isinstance(point, Items) and point.kind == "tuple" and len(names) == len(point.items):
            pieces = _pieces(_bare(sides[1])[1:-1])
            return Items("list", tuple(Relation(pair, ("=",)) for pair in zip(names, pieces, strict=True)))
    if r"\pm" in sides[-1] and set(signs) == {"="}:
        answer = parse(sides[-1])
        if isinstance(answer, Items):
            return answer
    return Relation(sides, signs)


def _bracketed(tokens: Tokens) -> Answer | None:
    inner = _inside(tokens, r"\{", r"\}") or _inside(tokens, "{", "}")
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
    rows = [row for row, _ in _split(tokens[1:-1], r"\\".__eq__) if row]
    entries = tuple(tuple(parse(entry) for entry, _ in _split(row, "&".__eq__)) for row in rows)
    if len(entries) * max(map(len, entries), default=0) > MOST_ITEMS:
        raise Unreadable("too large a matrix")
    return Matrix(entries)

r"""Expression trees, and their parser for tokens of plain mathematics. Nothing is computed or simplified."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from esplug_tasks_math.latex import Tokens, content, group, spell
from esplug_tasks_math.limits import DEEPEST, MOST_TOKENS, Unreadable


@dataclass(frozen=True, slots=True)
class Node:
    r"""A number, a name, or an operation.

    Attributes:
        head: ``number``, ``name``, ``pi``, ``e``, ``infinity``; an operation: ``sum``, ``product``, ``quotient``,
            ``negative``, ``power``, ``root`` (index, radicand); or a function, such as ``sin``, ``log`` (of a
            number, to a base), ``floor``, ``abs``, ``factorial``, ``binomial``.
        parts: arguments of an operation or function.
        value: value of a number.
        name: spelling of a name.
    """

    head: str
    parts: tuple["Node", ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


def _commands(names: str) -> frozenset[str]:
    return frozenset(f"\\{name}" for name in names.split())


_TRIGONOMETRIC = "sin cos tan cot sec csc sinh cosh tanh coth"
FUNCTIONS = _commands(
    f"{_TRIGONOMETRIC} arcsin arccos arctan arccot arcsec arccsc arcsinh arccosh arctanh arsinh arcosh artanh"
    " asin acos atan log ln lg exp max min"
)
_SAME = {
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
}
_PAIRS = {
    "(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", "|": "|", r"\{": r"\}",
}  # fmt: skip
_AROUND = {r"\lfloor": "floor", r"\lceil": "ceiling", "|": "abs"}
_GREEK = _commands(
    """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell mho"""
)
_ACCENTS = _commands("dot ddot hat bar tilde vec overline angle widehat mathbb mathcal")
# Before parentheses with several tokens, a name is a factor unless it commonly names a function.
_FUNCTION_NAMES = frozenset("fghFGHPQu")
_MIXED = re.compile(r"\\frac\{[0-9]+\}\{[0-9]+\}")
_ONE, _TEN, _HUNDRED, _HALF_TURN = (Node("number", value=Fraction(number)) for number in (1, 10, 100, 180))


@lru_cache(1024)
def expression(answer: Tokens) -> Node:
    r"""Parse an expression.

    A long name, such as ``v_{0}``, ``\dot{x}``, ``f(x)`` or ``\frac{dM}{dt}``, is one name. A number before a fraction
    of whole numbers is a mixed number.

    Raises:
        Unreadable: a token, such as ``\int``, is not part of a plain expression; or there are too many tokens.
    """
    if len(answer) > MOST_TOKENS:
        raise Unreadable("too large an expression")
    return _Parser(answer).whole()


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes inside it."""
    yield node
    for part in node.parts:
        yield from walk(part)


def names(node: Node) -> set[str]:
    """Return the names of an expression, without the imaginary unit."""
    return {each.name for each in walk(node) if each.head == "name" and each.name != "i"}


class _Parser:
    """Recursive descent. Each method consumes tokens from ``self._at`` on."""

    def __init__(self, answer: Tokens) -> None:
        self._tokens = answer
        self._at = 0
        self._depth = 0
        self._bars = 0

    def whole(self) -> Node:
        node = self._sum()
        if self._at < len(self._tokens):
            raise Unreadable(f"{self._tokens[self._at]} is not part of a plain expression")
        return node

    def _peek(self, ahead: int = 0) -> str:
        return self._tokens[self._at + ahead] if self._at + ahead < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable("nested too deeply")
        terms: list[Node] = []
        while True:
            negative = False
            while self._peek() in ("+", "-"):
                negative ^= self._take() == "-"
            term = self._term()
            terms.append(Node("negative", (term,)) if negative else term)
            if self._peek() not in ("+", "-"):
                break
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Node("sum", tuple(terms))

    def _term(self) -> Node:
        node = self._signed()
        while True:
            token = self._peek()
            if token in (r"\cdot", "/", r"\div"):
                self._take()
                factor = self._signed()
                node = _times(node, factor) if token == r"\cdot" else Node("quotient", (node, factor))
            elif self._starts(token):
                node = _times(node, self._factor())
            else:
                return node

    def _signed(self) -> Node:
        if self._peek() in ("+", "-"):
            self._depth += 1
            if self._depth > DEEPEST:
                raise Unreadable("nested too deeply")
            sign, node = self._take(), self._signed()
            self._depth -= 1
            return Node("negative", (node,)) if sign == "-" else node
        return self._factor()

    def _starts(self, token: str) -> bool:
        if token == "|":
            return not self._bars
        return bool(token) and (
            token.isdigit()
            or (token == "." and self._peek(1).isdigit())
            or token in _PAIRS
            or token in FUNCTIONS
            or token in (r"\frac", r"\binom", r"\sqrt", r"\pi", r"\infty")
            or _name_end(self._tokens, self._at) > self._at
        )

    def _factor(self) -> Node:
        if self._peek() in FUNCTIONS:
            return self._after(self._function())
        return self._after(self._atom())

    def _after(self, node: Node) -> Node:
        """Apply exponents and the signs after a factor."""
        raised = False
        while True:
            token = self._peek()
            if token == "^":
                if raised:
                    raise Unreadable("an exponent behind an exponent")
                node, raised = Node("power", (node, self._script())), True
            elif token == "!":
                if node.head == "factorial":
                    raise Unreadable("a factorial of a factorial")
                self._take()
                node, raised = Node("factorial", (node,)), False
            elif token == "%":
                self._take()
                node = Node("quotient", (node, _HUNDRED))
            elif token == "°":
                self._take()
                node = _times(node, Node("quotient", (Node("pi"), _HALF_TURN)))
            else:
                return node

    def _script(self) -> Node:
        self._take()
        return self._braced() if self._peek() == "{" else self._atom()

    def _braced(self) -> Node:
        if self._peek() != "{":
            raise Unreadable("an argument is missing")
        return self._inside()

    def _inside(self) -> Node:
        opening = self._take()
        bars, self._bars = self._bars, int(opening == "|")
        node = self._sum()
        self._bars = bars
        if self._take() != _PAIRS[opening]:
            raise Unreadable("brackets do not match")
        head = _AROUND.get(opening)
        return Node(head, (node,)) if head else node

    def _atom(self) -> Node:
        token = self._peek()
        end = _name_end(self._tokens, self._at)
        if end > self._at:
            name = spell(self._tokens[self._at : end])
            self._at = end
            return Node("e") if name == "e" else Node("name", name=content(name) or name)
        if token.isdigit() or token == ".":
            return self._number()
        if token in _PAIRS:
            return self._inside()
        self._take()
        if token in (r"\frac", r"\binom"):
            return Node("quotient" if token == r"\frac" else "binomial", (self._braced(), self._braced()))
        if token == r"\sqrt":
            index = self._inside() if self._peek() == "[" else Node("number", value=Fraction(2))
            return Node("root", (index, self._braced()))
        if token in (r"\pi", r"\infty"):
            return Node("pi" if token == r"\pi" else "infinity")
        raise Unreadable(f"{token or 'the end'} is not part of a plain expression")

    def _number(self) -> Node:
        whole = self._take() if self._peek() != "." else ""
        while self._peek() == "," and len(self._peek(1)) == 3 and self._peek(1).isdigit() and len(whole) > 0:
            self._take()
            whole += self._take()
        decimals = ""
        if self._peek() == "." and (whole or self._peek(1).isdigit()):
            self._take()
            decimals = self._take() if self._peek().isdigit() else ""
        if not whole and not decimals:
            raise Unreadable("a point without digits")
        value = Fraction(int(whole + decimals or 0), 10 ** len(decimals))
        mixed = self._tokens[self._at : self._at + 7]
        if not decimals and _MIXED.fullmatch("".join(mixed)) and 0 < int(mixed[2]) < int(mixed[5]):
            self._at += len(mixed)
            value += Fraction(int(mixed[2]), int(mixed[5]))
        return Node("number", value=value)

    def _function(self) -> Node:
        head = self._take()[1:]
        head = _SAME.get(head, head)
        base = exponent = None
        while self._peek() in ("_", "^"):
            if self._peek() == "_":
                if head != "log" or base:
                    raise Unreadable("a subscript of no name")
                base = self._script()
            elif exponent:
                raise Unreadable("an exponent behind an exponent")
            else:
                exponent = self._script()
        if exponent == Node("negative", (_ONE,)) and head in _TRIGONOMETRIC.split():
            head, exponent = f"arc{head}", None
        node = self._applied(head, base)
        return Node("power", (node, exponent)) if exponent else node

    def _applied(self, head: str, base: Node | None) -> Node:
        if head in ("max", "min"):
            return Node(head, tuple(self._arguments()))
        argument = self._argument()
        match head:
            case "exp":
                return Node("power", (Node("e"), argument))
            case "ln":
                return Node("log", (argument, Node("e")))
            case "lg" | "log":
                return Node("log", (argument, base or _TEN))
        return Node(head, (argument,))

    def _arguments(self) -> Iterator[Node]:
        closing = {"(": ")", r"\{": r"\}"}.get(self._take())
        while closing:
            yield self._sum()
            token = self._take()
            if token == closing:
                return
            if token != ",":
                break
        raise Unreadable("no arguments")

    def _argument(self) -> Node:
        r"""Parse a function's argument: in brackets, or factors until a sign or the next function: ``\sin 2x``."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable("nested too deeply")
        if self._peek() in ("(", "[", "{"):
            node = self._inside()
        else:
            node = self._signed()
            while self._peek() not in FUNCTIONS and self._starts(self._peek()):
                node = _times(node, self._factor())
        self._depth -= 1
        return node


def _times(left: Node, right: Node) -> Node:
    return Node("product", (*(left.parts if left.head == "product" else (left,)), right))


def _name_end(answer: Tokens, at: int) -> int:
    """Return the index after the name that starts at ``at``, or ``at`` if there is no name."""
    token = answer[at] if at < len(answer) else ""
    if token == r"\frac":
        return _derivative_end(answer, at)
    if token in _ACCENTS:
        end = group(answer, at + 1)
    elif token in _GREEK or (len(token) == 1 and token.isalpha()) or len(content(token)) == 1:
        end = at + 1
    else:
        return at
    while end < len(answer) and answer[end] in ("_", "'"):
        end = group(answer, end + 1) if answer[end] == "_" else end + 1
    if answer[end : end + 1] == ("(",) and token not in ("e", "i"):
        closing = _closing(answer, end)
        if closing - end == 2 or (token in _FUNCTION_NAMES and closing > end):
            end = closing + 1
    return end


def _derivative_end(answer: Tokens, at: int) -> int:
    middle = group(answer, at + 1)
    end = group(answer, middle)
    top, bottom = answer[at + 2 : middle - 1], answer[middle + 1 : end - 1]
    is_derivative = len(bottom) > 1 and bottom[0] == "d" and top[:1] == ("d",) and bottom[1] not in ("+", "-")
    return end if is_derivative else at


def _closing(answer: Tokens, opening: int) -> int:
    depth = 0
    for index in range(opening, len(answer)):
        depth += (answer[index] in "([") - (answer[index] in ")]")
        if depth == 0:
            return index
    return opening

r"""Writer of LaTeX for latex2sympy, from known tokens only, with a short symbol for each long name."""

import zlib
from collections.abc import Iterator
from itertools import accumulate

from esplug_tasks_math.latex import Tokens, Unreadable, content, group, spell


def _commands(names: str) -> frozenset[str]:
    return frozenset(f"\\{name}" for name in names.split())


_FUNCTIONS = _commands("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min")
_PASSED = _commands("cdot pi lfloor rfloor lceil rceil infty") | frozenset("+-/^()|!")
_SPELT = {"[": "(", "]": ")", ":": "/", "°": r"\cdot \frac{\pi}{180}", "%": r"\cdot \frac{1}{100}"}
_GREEK = _commands(
    """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell mho"""
)
_ACCENTS = _commands("dot ddot hat bar tilde vec overline angle widehat mathbb mathcal")
# Before parentheses with several tokens, a name is a factor unless it commonly names a function.
_FUNCTION_NAMES = frozenset("fghFGHPQu")
LARGEST_DIGITS_OF_FACTORIAL = 4
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
#: Limits on the parser's input: its time grows fast with the depth of parentheses.
MOST_TOKENS, DEEPEST = 500, 16


def parser_latex(answer: Tokens) -> str:
    r"""Return LaTeX that latex2sympy parses with the meaning of the tokens.

    A long name becomes ``v_{<checksum>}``, always the same symbol for the same name. Decimals become fractions,
    because floats would be rounded.

    Raises:
        Unreadable: a token, such as ``\int``, is not part of a plain expression; or there are more than 500 tokens or
            16 levels of parentheses.
    """
    depths = accumulate((token in _OPENING) - (token in _CLOSING) for token in answer)
    if len(answer) > MOST_TOKENS or max(depths, default=0) > DEEPEST:
        raise Unreadable("too large an expression")
    return " ".join(_rebuilt(answer))


def _rebuilt(answer: Tokens) -> Iterator[str]:
    at = 0
    while at < len(answer):
        token = answer[at]
        end = _name_end(answer, at)
        if end > at:
            if answer[end : end + 1] == ("!",):  # the parser's factorial takes no exponent
                yield f"({_symbol(answer[at:end])} {_checked(answer, end)})"
                end += 1
            else:
                yield _symbol(answer[at:end])
            if answer[end : end + 1] == ("(",):
                yield r"\cdot"
            at = end
        elif token.isdigit() or (token == "." and answer[at + 1 : at + 2] and answer[at + 1].isdigit()):
            at, number = _number(answer, at)
            yield number
        elif token in (r"\frac", r"\binom"):
            middle = group(answer, at + 1)
            end = group(answer, middle)
            top, bottom = _braced(answer[at + 1 : middle]), _braced(answer[middle:end])
            yield rf"\frac{top}{bottom}" if token == r"\frac" else _binomial(top[1:-1], bottom[1:-1])
            at = end
        elif token == r"\sqrt":
            middle = _bracket_end(answer, at + 1)
            end = group(answer, middle)
            index = " ".join(_rebuilt(answer[at + 2 : middle - 1]))
            yield f"\\sqrt{f'[{index}]' if index else ''}{_braced(answer[middle:end])}"
            at = end
        elif token in ("^", "_") or token == "{":
            end = group(answer, at + (token != "{"))
            yield from _script(answer, at, end)
            at = end
        elif token in _FUNCTIONS or token in _PASSED:
            yield _checked(answer, at)
            at += 1
        elif token in _SPELT:
            yield _SPELT[token]
            at += 1
        else:
            raise Unreadable(f"{token} is not part of a plain expression")


def _binomial(top: str, bottom: str) -> str:
    """Write a binomial as factorials, because latex2sympy would compute it at once, however large."""
    return rf"\frac{{({top})!}}{{({bottom})! \cdot (({top})-({bottom}))!}}"


def _script(answer: Tokens, at: int, end: int) -> Iterator[str]:
    if answer[at] == "_" and (at == 0 or answer[at - 1] != r"\log"):
        raise Unreadable("a subscript of no name")
    if answer[at] == "^" and answer[end : end + 1] == ("^",):
        raise Unreadable("an exponent behind an exponent")
    yield f"{answer[at]}{_braced(answer[at + 1 : end])}" if answer[at] != "{" else _group(answer[at:end])


def _group(braced: Tokens) -> str:
    return f"({' '.join(_rebuilt(braced[1:-1]))})"


def _braced(argument: Tokens) -> str:
    inner = argument[1:-1] if argument[:1] == ("{",) else argument
    return f"{{{' '.join(_rebuilt(inner))}}}"


def _checked(answer: Tokens, at: int) -> str:
    if answer[at] == "!":
        before = answer[at - 1] if at else ""
        if before == "!" or (before.isdigit() and len(before) > LARGEST_DIGITS_OF_FACTORIAL):
            raise Unreadable("too large a factorial")
    return answer[at]


def _number(answer: Tokens, at: int) -> tuple[int, str]:
    whole = answer[at] if answer[at] != "." else ""
    after = at + bool(whole)
    script = at > 0 and answer[at - 1] in "^_"
    number = whole
    if answer[after : after + 1] == (".",) and not script:
        decimals = answer[after + 1] if answer[after + 1 : after + 2] and answer[after + 1].isdigit() else ""
        after += 1 + bool(decimals)
        number = rf"\frac{{{int(whole + decimals or 0)}}}{{1{'0' * len(decimals)}}}"
    # 2(1/2) is a product. Without the dot, latex2sympy reads two and a half.
    dot = r" \cdot" if not script and answer[after : after + 1] and answer[after] in "([{" else ""
    return after, number + dot


def _name_end(answer: Tokens, at: int) -> int:
    """Return the index after the name that starts at ``at``, or ``at`` if there is no name."""
    token = answer[at]
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


def _bracket_end(answer: Tokens, at: int) -> int:
    return _closing(answer, at) + 1 if answer[at : at + 1] == ("[",) else at


def _symbol(name: Tokens) -> str:
    if len(name) == 1:
        letter = content(name[0]) or name[0]
        if len(letter) == 1 and letter.isascii():
            return letter
    return f"v_{{{zlib.crc32(spell(name).encode())}}}"

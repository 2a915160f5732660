r"""LaTeX tokenizer with one normalized spelling, so that answers that look the same have equal tokens.

A token is a command (``\frac``), a run of digits, a word (``\text{cents}``, with two letters or more), the
``\begin{...}`` or ``\end{...}`` of an environment, or one character. Sizes, spaces, dollar signs and fonts are
removed. Arguments of ``\frac`` and ``\sqrt`` always have braces; exponents and subscripts have them only if needed.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias

from esplug_tasks_math.limits import DEEPEST, MOST_DIGITS, Unreadable
from esplug_tasks_math.notation import latex
from esplug_tasks_math.spelling import ALIASES, DROPPED, FONTS, INFIX

Tokens: TypeAlias = tuple[str, ...]

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[0-9]+|\s+|.", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2}")
_PER = re.compile(r"[A-Za-z]+(?:\^-?[0-9])?(?:[ /]+[A-Za-z]+(?:\^-?[0-9])?)+|[A-Za-z]+\^-?[0-9]")  # m/s, m s^-1

_LENGTH = re.compile(r"\[-?[0-9.]+(?:pt|em|ex|mm|cm|in|pc|mu)\]")
_COLUMNS = re.compile(r"\[[lcr|]+\]")

_ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1}


def tokens(text: str) -> Tokens:
    r"""Tokenize LaTeX, Unicode or plain text, in normalized spelling.

    Raises:
        Unreadable: the text is longer than 2,000 characters, contains a number of more than 400 digits or more than 30
            levels of nesting, or has unbalanced braces.
    """
    raw = _TOKEN.findall(latex(text).replace("<=", r"\leq ").replace(">=", r"\geq "))  # as in code
    _check(raw)
    spelt = _Reader(raw).read()
    while spelt and spelt[-1] in ".,;:" and spelt[-2:] != ["\\", "."]:
        spelt.pop()
    return tuple(spelt)


def spell(answer: Tokens) -> str:
    """Join tokens into LaTeX, with a space only where two tokens would otherwise merge."""
    written: list[str] = []
    for token in answer:
        before = written[-1] if written else ""
        command = before.startswith("\\") and before[-1:].isalpha()
        if (command and token[0].isalpha()) or (before.isdigit() and token.isdigit()):
            written.append(" ")
        written.append(token)
    return "".join(written)


def words(answer: Tokens) -> str:
    """Return the text of tokens in lower case, without markup and spaces."""
    return "".join("".join(content(token) or token for token in answer).split()).lower().strip(".")


def content(word: str) -> str:
    r"""Return the content of a ``\text{...}`` token, or ``""`` for any other token."""
    return word[len(r"\text{") : -1] if word.startswith(r"\text{") else ""


def group(answer: Tokens, start: int) -> int:
    """Return the index after the braced group or single token that starts at ``start``."""
    if start >= len(answer) or answer[start] != "{":
        return min(start + 1, len(answer))
    depth = 0
    for index in range(start, len(answer)):
        depth += (answer[index] == "{") - (answer[index] == "}")
        if depth == 0:
            return index + 1
    raise Unreadable("braces do not match")


def _check(raw: list[str]) -> None:
    depth = brackets = 0
    for token in raw:
        depth += (token == "{") - (token == "}")
        brackets += (token in "([") - (token in ")]") if len(token) == 1 else 0
        if depth < 0 or depth > DEEPEST or brackets > DEEPEST:
            raise Unreadable("braces do not match, or nest too deep")
        if len(token) > MOST_DIGITS and token.isdigit():
            raise Unreadable("a number of too many digits")
    if depth:
        raise Unreadable("braces do not match")


class _Reader:
    """Reader of raw tokens in one pass. Its recursion is as deep as the braces, which ``_check`` limits."""

    def __init__(self, raw: list[str]) -> None:
        self._raw = raw
        self._at = 0

    def read(self, closing: str | None = None) -> list[str]:
        spelt: list[str] = []
        while self._at < len(self._raw) and self._raw[self._at] != closing:
            infix = INFIX.get(self._raw[self._at])  # {1 \over 2}
            if infix:
                self._at += 1
                return [infix, "{", *spelt, "}", "{", *self.read(closing), "}"]
            spelt += self._next()
        return spelt

    def _next(self) -> list[str]:
        token = self._raw[self._at]
        self._at += 1
        if token in DROPPED or token.isspace():
            return []
        if token in FONTS:
            return self._font(token)
        if token in (r"\begin", r"\end"):
            return self._environment(token)
        if token in (r"\\", r"\cr"):
            self._skip(_LENGTH)
            return [r"\\"]
        if token == "{":
            return self._braces()
        if token == r"\$":
            return ["\\$"]
        if token in ("^", "_"):
            return self._script(token)
        token, *others = ALIASES.get(token, (token,))
        spelt = [token, *others]
        if not others and token in _ARGUMENTS:
            spelt += self._root() if token == r"\sqrt" else []
            for _ in range(_ARGUMENTS[token]):
                inner = self._parenthesis() if token == r"\sqrt" else None
                spelt += ["{", *(self._argument() if inner is None else inner), "}"]
        return spelt

    def _environment(self, token: str) -> list[str]:
        name = self._verbatim().strip()
        if token == r"\begin" and name.endswith("*"):
            self._skip(_COLUMNS)
        if token == r"\begin" and name == "array":
            self._verbatim()
        return [f"{token}{{{name.removesuffix('*')}}}"]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        """Skip an option in square brackets that matches, such as the ``[2pt]`` of a line break."""
        start = self._at
        while start < len(self._raw) and self._raw[start].isspace():
            start += 1
        if self._raw[start : start + 1] == ["["] and "]" in self._raw[start : start + 9]:
            end = self._raw.index("]", start) + 1
            if pattern.fullmatch("".join(self._raw[start:end])):
                self._at = end

    def _braces(self) -> list[str]:
        inner = self.read("}")
        self._at += 1
        # Braces around a single token, such as {,}, have no effect.
        return inner if len(inner) == 1 else ["{", *inner, "}"]

    def _argument(self) -> list[str]:
        self._skip_space()
        if self._at >= len(self._raw) or self._raw[self._at] == "}":
            raise Unreadable("an argument is missing")
        token = self._raw[self._at]
        if token == "{":
            self._at += 1
            inner = self.read("}")
            self._at += 1
            return inner
        if token.isdigit() and len(token) > 1:  # \frac12 is one half
            self._raw[self._at] = token[1:]
            return [token[0]]
        return self._next()

    def _root(self) -> list[str]:
        self._skip_space()
        if self._at < len(self._raw) and self._raw[self._at] == "[":
            self._at += 1
            index = self.read("]")
            self._at += 1
            return ["[", *index, "]"]
        return []

    def _parenthesis(self) -> list[str] | None:
        r"""Read the argument of ``\sqrt(2)`` and ``x^(1/2)``, or return ``None`` if no parenthesis is here."""
        self._skip_space()
        while self._raw[self._at : self._at + 1] == [r"\left"]:
            self._at += 1
        if self._raw[self._at : self._at + 1] != ["("]:
            return None
        depth = 0
        for end in range(self._at, len(self._raw)):
            depth += (self._raw[end] == "(") - (self._raw[end] == ")")
            if depth == 0:
                break
        else:
            return None
        inner = _Reader(self._raw[self._at + 1 : end]).read()
        self._at = end + 1
        return inner

    def _script(self, token: str) -> list[str]:
        self._skip_space()
        minus = token == "^" and self._raw[self._at : self._at + 1] in (["-"], ["\N{MINUS SIGN}"])  # 10^-3
        if minus:
            self._at += 1
            self._skip_space()
        if self._at >= len(self._raw):
            return []
        grouped = self._parenthesis() if token == "^" else None
        if grouped is None:
            grouped = self._argument() if self._raw[self._at] == "{" else self._next()
        inner = ["-", *grouped] if minus else grouped
        if inner in ([r"\circ"], ["°"]):
            return ["°"]
        if inner and set(inner) == {"'"}:
            return inner
        return [token, *inner] if len(inner) == 1 else [token, "{", *inner, "}"]

    def _font(self, command: str) -> list[str]:
        self._skip_space()
        if self._at >= len(self._raw) or self._raw[self._at] != "{":
            return []
        said = self._verbatim()
        if command.startswith(r"\operatorname") and re.fullmatch("[a-z]{2,9}", said):
            return ["\\" + said]
        plain = said.replace("$", "").strip()
        if len(plain) == 1 and plain.isalpha() and plain not in "edi":  # perhaps a unit, as in 5 \text{ m}
            return [rf"\text{{{plain}}}"]
        if (_WORD.search(plain) or _PER.fullmatch(plain)) and "\\" not in plain:
            return [r"\text{" + " ".join(plain.split()) + "}"]
        return _Reader(_TOKEN.findall(said)).read()

    def _verbatim(self) -> str:
        """Consume the next braced group and return its source text."""
        self._skip_space()
        if self._at >= len(self._raw) or self._raw[self._at] != "{":
            return ""
        start = self._at + 1
        for index in _closings(self._raw, self._at):
            self._at = index + 1
            return "".join(self._raw[start:index])
        raise Unreadable("braces do not match")

    def _skip_space(self) -> None:
        while self._at < len(self._raw) and self._raw[self._at].isspace():
            self._at += 1


def _closings(raw: list[str], opening: int) -> Iterator[int]:
    depth = 0
    for index in range(opening, len(raw)):
        depth += (raw[index] == "{") - (raw[index] == "}")
        if depth == 0:
            yield index

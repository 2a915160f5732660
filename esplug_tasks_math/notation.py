r"""Notation of an answer: Unicode, Markdown and plain-text mathematics, rewritten as LaTeX."""

import re
import unicodedata

from esplug_tasks_math.limits import LONGEST_ANSWER, Unreadable
from esplug_tasks_math.spelling import ALIASES, listed

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₘₖₓ", "0123456789+-()nmkx", strict=True))
_RAISED = re.compile("[" + "".join(_SUPERSCRIPTS) + "]+")
_LOWERED = re.compile("[" + "".join(_SUBSCRIPTS) + "]+")
# A digit with a line or a dot above it recurs.
_OVER = {
    "\N{COMBINING OVERLINE}": r"\overline",
    "\N{COMBINING MACRON}": r"\overline",
    "\N{COMBINING DOT ABOVE}": r"\dot",
}
_OVERLINED = re.compile("((?:[0-9][" + "".join(_OVER) + "])+)")
#: Unicode decompositions that change only the appearance of a character.
_APPEARANCE = ("<wide>", "<narrow>", "<font>", "<noBreak>")

_MARKS = (
    ("**", "**"), ("__", "__"), ("``", "''"), ("`", "`"), ('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"),
    ("\N{LEFT SINGLE QUOTATION MARK}", "\N{RIGHT SINGLE QUOTATION MARK}"),
    ("$$", "$$"), ("$", "$"), ("*", "*"), (r"\(", r"\)"), (r"\[", r"\]"),
)  # fmt: skip
_FONT = re.compile(
    r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|emph|underline|bm|pmb)\s*\{([^{}]*)\}"
)
# A product of units in one font: \mathrm{m\,s^{-1}}.
_UNITS = re.compile(
    r"\\(?:mathrm|text|rm|mathsf)\s*\{((?:\s|\\[,;: ]|~|\\cdot\b|[A-Za-z/]|\^-?[0-9]|\^\{-?[0-9]\})+)\}"
)
# All colors but white, and no mixtures or numbers, which may be white.
_COLOR = re.compile(r"\\(?:text)?color\s*\{\s*(?![Ww]hite)[A-Za-z]+\s*\}")

_FUNCTIONS = listed(
    """sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan arcsinh arccosh arctanh asin acos atan
    log ln lg exp sqrt"""
)
_GREEK = listed("alpha beta gamma delta epsilon theta lambda mu rho sigma tau phi omega pi")
_WORDS = (
    {name: f"\\{name} " for name in (*_FUNCTIONS, *_GREEK)}
    | dict.fromkeys(("inf", "infinity", "Infinity", "oo", "infty"), r"\infty ")
    | {"cbrt": r"\sqrt[3]", "and": r"\text{and}", "or": r"\text{or}"}
)
# Commands and their text are left alone; other runs of letters are words.
_WORD = re.compile(
    r"\\(?:text[a-z]*|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname\*?|begin|end|emph)\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Za-z]+"
)
_ONES = listed(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen"""
)
_TENS = dict(enumerate(listed("twenty thirty forty fifty sixty seventy eighty ninety"), start=2))
_NUMBERS = (
    {word: str(number) for number, word in enumerate(_ONES)}
    | {word: f"{ten}0" for ten, word in _TENS.items()}
    | {f"{word}{gap}{_ONES[one]}": f"{ten}{one}" for ten, word in _TENS.items() for one in range(1, 10) for gap in "- "}
    | {"one hundred": "100", "infinity": r"\infty", "negative infinity": r"-\infty"}
)
_PLAIN = (
    (re.compile(r"(?:\\\\|\\newline)\s*$"), ""),
    (re.compile(r"\\hspace\*?\s*\{[^{}]*\}|\\ensuremath\b|\\checkmark\b|(?:US|USD)(?=\s*\\?\$)"), ""),
    (re.compile(r"^\s*(?:the )?(?:final )?answer(?: is)?\s*[:=]?\s*", re.IGNORECASE), ""),
    (re.compile(r":="), "="),
    (re.compile(r"\\not\s*="), r"\\neq "),
    (re.compile("。"), "."),
    (re.compile(r"√\s*([0-9]+(?:\.[0-9]+)?)|(?<![A-Za-z\\])sqrt\s*([0-9]+)"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\(?:left|right)\s*\."), ""),
    (re.compile("∛"), r"\\sqrt[3]"),
    (re.compile("∜"), r"\\sqrt[4]"),
    (re.compile(r"(?<=[0-9])\s+to\s+(?=[0-9])"), r"\\text{to}"),
    (re.compile(r"\\text[a-z]*\{\s*([ap])\.?\s?m\.?\s*\}", re.IGNORECASE), r"\\text{\1m}"),
    (re.compile(r"\.{3}|…"), r"\\ldots "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\+/-|(?<=\s)\+-(?=\s)"), r"\\pm "),
    (re.compile(r"(?<=[\sA-Za-z)])\s*!="), r"\\neq "),
    (re.compile(r"(?<=[0-9])\s*x\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"(?<=[0-9])\s*([ap])\.?\s?m\b\.?(?![A-Za-z])", re.IGNORECASE), r" \\text{\1m}"),
    (re.compile(r"\babs\s*\(([^()]*)\)"), r"|\1|"),
)  # fmt: skip


def latex(text: str) -> str:
    """Rewrite an answer in LaTeX.

    Raises:
        Unreadable: the text is longer than 2,000 characters.
    """
    if len(text) > LONGEST_ANSWER:
        raise Unreadable("too long")
    text = _unwrapped(_COLOR.sub("", _ascii(text)))
    text = _UNITS.sub(_product_of_units, text)
    for pattern, written in _PLAIN:
        text = pattern.sub(written, text)
    return _WORD.sub(lambda match: _WORDS.get(match[0], match[0]), text)


def _ascii(text: str) -> str:
    """Replace characters by their plain form, and remove invisible ones."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda run: "^{" + "".join(map(_SUPERSCRIPTS.__getitem__, run[0])) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + "".join(map(_SUBSCRIPTS.__getitem__, run[0])) + "}", text)
    text = _OVERLINED.sub(_recurring, text)
    return "".join(map(_plain_character, text))


def _recurring(run: re.Match[str]) -> str:
    digits, mark = run[0][::2], _OVER[run[0][1]]
    return f"{mark}{{{digits}}}" if mark == r"\overline" else "".join(rf"\dot{{{digit}}}" for digit in digits)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    if category == "Zs":
        return " "
    if character.isdigit():
        return str(unicodedata.decimal(character, r"\circled "))
    if character in ALIASES:
        return character
    kind, *codes = unicodedata.decomposition(character).split() or [""]
    if kind in _APPEARANCE:
        return "".join(chr(int(code, 16)) for code in codes)
    if kind == "<fraction>":
        top, _, bottom = "".join(chr(int(code, 16)) for code in codes).partition("\N{FRACTION SLASH}")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else character
    return character


def _product_of_units(match: re.Match[str]) -> str:
    if not re.search(r"[\^\\~]", match[1]):
        return match[0]
    plain = re.sub(r"\\[,;: ]|\\cdot|~", " ", match[1])
    return rf"\text{{{re.sub(r'[{}]', '', plain)}}}"


def _unwrapped(text: str) -> str:
    """Remove marks around the whole answer: bold, quotes, backticks, dollars, and text that contains a number."""
    while True:
        text = text.strip()
        inner = _inner(text)
        if inner is None:
            return text
        text = inner


def _inner(text: str) -> str | None:
    font = _FONT.fullmatch(text)
    plain = (font[1] if font else text).strip(" .").lower()
    if plain in _NUMBERS:
        return _NUMBERS[plain]
    if font and (any(map(str.isdigit, font[1])) or _marked(font[1]) is not None):
        return font[1]
    return _marked(text)


def _marked(text: str) -> str | None:
    for opening, closing in _MARKS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and closing not in inner:
                return inner
    return None

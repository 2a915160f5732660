r"""Answers derived by rule from an expected answer: rewritings that keep the meaning, and near-misses that do not.

A rule returns ``None`` for an answer that it does not fit.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from random import Random

Rule = Callable[[str, Random], str | None]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}")
_WORD = re.compile(r"(?:\\text\{)?([A-Za-z]{3,})\}?")
_POINT = re.compile(r"(?:\\left)?\( *([^,()]+), *([^,()]+?) *(?:\\right)?\)")
_INTERVAL = re.compile(r"(?:\\left)?([\[(]) *([^,()\[\]]+), *([^,()\[\]]+?) *(?:\\right)?([\])])")
_LIST = re.compile(r"(?!.*,(?:\\!)? ?[0-9]{3}(?![0-9]))[^,()\[\]{}=]+(?:, *[^,()\[\]{}=]+)+")
_EQUATION = re.compile(r"([a-zA-Z]) *= *([^=,;<>]+)")
_SUM = re.compile(r"([0-9]*[a-z]|[0-9]+|[0-9]*\\sqrt\{[0-9]+\}) *\+ *([0-9]*[a-z]|[0-9]+|[0-9]*\\sqrt\{[0-9]+\})")


def _is_number(gold: str) -> bool:
    return bool(_INTEGER.fullmatch(gold) or _DECIMAL.fullmatch(gold) or _FRACTION.fullmatch(gold))


def _when(pattern: re.Pattern[str], rewrite: Callable[[re.Match[str], Random], str | None]) -> Rule:
    def rule(gold: str, rng: Random) -> str | None:
        match = pattern.fullmatch(gold)
        return rewrite(match, rng) if match else None

    return rule


def _around(opening: str, closing: str, *, numbers: bool = True) -> Rule:
    return lambda gold, _: f"{opening}{gold}{closing}" if not numbers or _is_number(gold) else None


def _replaced(*pairs: tuple[str, str]) -> Rule:
    def rule(gold: str, _: Random) -> str | None:
        text = gold
        for old, new in pairs:
            text = text.replace(old, new)
        return text if text != gold else None

    return rule


def _decimal(match: re.Match[str], _: Random) -> str | None:
    value = Fraction(int(match[2]), int(match[3]))
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    text = f"{float(value):.12f}".rstrip("0").rstrip(".")
    return match[1] + text if rest == 1 and Fraction(text) == value else None


def _spaced(gold: str, _: Random) -> str | None:
    text = re.sub(r" *(?<=[^\\])([=+,]|\\cup|\\leq?(?![A-Za-z])) *", r" \1 ", gold).strip()
    return text if text != gold and not re.search(r",(?:\\!)? ?[0-9]{3}|\\text", gold) else None


def _sized(gold: str, _: Random) -> str | None:
    balanced = gold.count("(") == gold.count(")") > 0 and "\\left" not in gold and "[" not in gold
    return gold.replace("(", r"\left(").replace(")", r"\right)") if balanced and "text" not in gold else None


def _plain_root(gold: str, _: Random) -> str | None:
    text = re.sub(r"\\sqrt\{(\w+)\}", r"sqrt(\1)", re.sub(r"(?<=[A-Za-z])\\sqrt", r" \\sqrt", gold))
    return text if "sqrt(" in text and "frac" not in text else None


def _reordered(match: re.Match[str], _: Random) -> str | None:
    parts = [part.strip() for part in match[0].split(",")]
    return ", ".join(parts[::-1]) if parts != parts[::-1] else None


def _as_set(match: re.Match[str], _: Random) -> str | None:
    parts = [part.strip() for part in match[0].split(",")]
    return rf"\{{{match[0]}\}}" if len(set(parts)) == len(parts) else None


def _dropped(match: re.Match[str], _: Random) -> str:
    return match[0].rpartition(",")[0]


def _negated(gold: str, _: Random) -> str | None:
    if gold in ("0", "0.0") or re.search(r"pm|text|^\(|[=<>,]|^[A-Z]+$", gold) or "\\in" in gold:
        return None
    if gold.startswith("-"):
        return gold[1:] if not re.search(r"[-+]", gold[1:]) else None
    return f"-{gold}" if not re.search(r"(?<![{^])[-+]", gold) else None


def _other_digit(gold: str, rng: Random) -> str | None:
    places = [match.start() for match in re.finditer("[0-9]", gold)]
    if not places:
        return None
    at = rng.choice(places)
    return gold[:at] + str((int(gold[at]) + rng.randrange(1, 10)) % 10) + gold[at + 1 :]


def _changed_bracket(match: re.Match[str], rng: Random) -> str | None:
    opening, low, high, closing = match.groups()
    if (opening, closing) == ("(", ")") and "infty" not in low + high:
        return None  # perhaps a point
    finite = [side for side, end in (("low", low), ("high", high)) if "infty" not in end]
    if not finite:
        return None
    if rng.choice(finite) == "low":
        opening = "([".replace(opening, "")
    else:
        closing = ")]".replace(closing, "")
    return f"{opening}{low}, {high}{closing}"


def _flipped(gold: str, _: Random) -> str | None:
    for old, new in ((r"\leq", "<"), (r"\geq", ">"), (r"\le", "<"), (r"\ge", ">"), ("<", r" \leq "), (">", r" \geq ")):
        match = re.search(re.escape(old) + "(?![a-z])", gold)
        if match:
            return gold[: match.start()] + new + gold[match.end() :]
    return None


def _unevaluated(match: re.Match[str], rng: Random) -> str:
    number, part = int(match[0]), rng.randrange(2, 30)
    return rng.choice(
        (f"{number - part} + {part}", f"{number + part} - {part}", rf"\frac{{{number * part}}}{{{part}}}")
    )


#: Rules that keep the meaning: each result is as right as the expected answer.
SAME: dict[str, Rule] = {
    "itself": lambda gold, _: gold,
    "dollar signs": _around("$", "$", numbers=False),
    "spaces": _spaced,
    r"\left, \right": _sized,
    r"\dfrac": _replaced((r"\frac", r"\dfrac")),
    "a/b": _when(_FRACTION, lambda match, _: f"{match[1]}{match[2]}/{match[3]}"),
    "unreduced fraction": _when(_FRACTION, lambda m, _: rf"{m[1]}\frac{{{2 * int(m[2])}}}{{{2 * int(m[3])}}}"),
    "exact decimal": _when(_FRACTION, _decimal),
    "trailing zeros": _when(_INTEGER, lambda match, _: f"{match[0]}.00"),
    "digits in threes": _when(_INTEGER, lambda match, _: f"{int(match[0]):,}" if abs(int(match[0])) > 999 else None),
    "a unit": _around("", r" \text{ cm}"),
    "a noun": _around("", " apples"),
    "named": _around("x = ", ""),
    "named, last": _around("", " = x"),
    "a sentence": _around(r"\text{The answer is } ", ""),
    "Unicode minus": _replaced(("-", "\N{MINUS SIGN}")),
    "bold": _around(r"\mathbf{", "}"),
    "Markdown bold": _around("**", "**"),
    "plain word": _when(_WORD, lambda match, _: match[1]),
    "word in text": _when(_WORD, lambda match, _: rf"\text{{{match[1].lower()}}}"),
    "list, other order": _when(_LIST, _reordered),
    "list as set": _when(_LIST, _as_set),
    "list with and": _when(_LIST, lambda match, _: r" \text{ and } ".join(match[0].rsplit(",", 1))),
    "sum, other order": _when(_SUM, lambda match, _: f"{match[2]} + {match[1]}"),
    "right-hand side": _when(_EQUATION, lambda match, _: match[2]),
    "plain root": _plain_root,
    "plain pi": _replaced((r"\pi", "pi")),
}

#: Rules that change the meaning: each result is wrong.
OTHER: dict[str, Rule] = {
    "sign": _negated,
    "a digit": _other_digit,
    "one more": _when(_INTEGER, lambda match, _: str(int(match[0]) + 1)),
    "rounded": _when(_FRACTION, lambda m, r: None if _decimal(m, r) else f"{m[1]}{int(m[2]) / int(m[3]):.3f}"),
    "upside down": _when(_FRACTION, lambda m, _: rf"{m[1]}\frac{{{m[3]}}}{{{m[2]}}}" if m[2] != m[3] else None),
    "tuple swapped": _when(_POINT, lambda m, _: f"({m[2]}, {m[1]})" if m[1] != m[2] else None),
    "tuple as set": _when(_POINT, lambda match, _: rf"\{{{match[1]}, {match[2]}\}}"),
    "bracket": _when(_INTERVAL, _changed_bracket),
    "strict or not": _flipped,
    "part dropped": _when(_LIST, _dropped),
    "part added": _when(_LIST, lambda match, _: f"{match[0]}, 12345"),
    "two answers": _when(_INTEGER, lambda match, _: rf"{match[0]} \text{{ or }} {int(match[0]) + 1}"),
    "unevaluated": _when(_INTEGER, _unevaluated),
    "other equation": _when(_INTEGER, lambda match, _: f"2x = {match[0]}"),
    "false equation": _when(_INTEGER, lambda match, _: f"x = {int(match[0]) + 1} = {match[0]}"),
    "negated in words": _around(r"\text{not } ", ""),
    "a part of it": _around("", r" \text{ tenths}"),
    "other name": _when(_EQUATION, lambda match, _: f"{'y' if match[1] != 'y' else 'x'} = {match[2]}"),
    "other word": _when(_WORD, lambda match, _: rf"\text{{not {match[1]}}}"),
}

"""Generator of random and hostile answers: LaTeX, plain text and Unicode of at most 2,000 characters.

Answer ``i`` is a function of the seed and ``i``, so a search can be split, resumed and repeated.
"""

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

LONGEST = 2_000

_VOCABULARY: dict[str, str] = tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text(encoding="utf-8"))
_PIECES = {name: text.split() for name, text in _VOCABULARY.items()}
FUNCTIONS, SYMBOLS, OPERATORS, WORDS = (_PIECES[name] for name in ("functions", "symbols", "operators", "words"))
BRACKETS, STRUCTURES = _PIECES["brackets"], _PIECES["structures"]
# In nests and structures, this is the place of the expression.
HOLE = "…"
NESTS = [*_PIECES["nests"], *(f"{function}({HOLE})" for function in FUNCTIONS)]
#: Expected answers of every kind that the grader knows.
GOLDS = _VOCABULARY["golds"].strip().splitlines()
_LOW_DEPTHS = (2, 5, 8, 12, 15, 16, 17, 20, 28, 30)
_RANGES = ((32, 127), (32, 127), (160, 0x250), (0x370, 0x400), (0x2000, 0x2C00), (0xFF00, 0xFFF0), (0x1D400, 0x1D800))


def answer(seed: int, number: int, golds: Sequence[str]) -> tuple[str, str]:
    """Return answer ``number``, and the expected answer to grade it against."""
    rng = Random(f"{seed} {number}")
    make = rng.choices(list(_KINDS), weights=list(_KINDS.values()))[0]
    gold = rng.choice(golds)
    # Half of the answers resemble the expected one.
    return make(rng, rng.choice(([gold], golds)))[:LONGEST], gold


def mutation(rng: Random, golds: Sequence[str]) -> str:
    """Change an expected answer in a few places: cut, double, insert, replace or wrap."""
    text = rng.choice(golds)
    for _ in range(rng.choice((1, 1, 2, 3, 8, 30))):
        at, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        end = min(end, at + rng.choice((1, 1, 3, 20)))
        piece = rng.choice((*OPERATORS, *SYMBOLS, *WORDS, *BRACKETS, *"0123456789^_", _number(rng)))
        changed = (
            text[end:],
            text[at:],
            piece + text[at:],
            piece + text[end:],
            _inside(rng.choice(NESTS), text[at:end]) + text[end:],
        )
        text = (text[: rng.choice((at, end))] + rng.choice(changed))[:LONGEST]
    return text


def expression(rng: Random, _: Sequence[str]) -> str:
    return _expression(rng, rng.randrange(1, 14))


def bomb(rng: Random, _: Sequence[str]) -> str:
    """Nest one to three patterns as deep as an answer allows, or less."""
    nests = rng.sample(NESTS, rng.choice((1, 1, 1, 2, 3)))
    core = rng.choice((rng.choice(SYMBOLS), _number(rng)))
    most = max(2, LONGEST // sum(map(len, nests)))
    for _ in range(rng.choice((*_LOW_DEPTHS, most, rng.randrange(1, most)))):
        for nest in nests:
            core = _inside(nest, core)
        if len(core) > LONGEST:
            break
    return core


def repetition(rng: Random, golds: Sequence[str]) -> str:
    """Repeat one piece with one separator: long sums, products, towers, lists and chains of relations."""
    piece = rng.choice((_number(rng), rng.choice(SYMBOLS), _expression(rng, 3), rng.choice(golds), _expression(rng, 5)))
    separator = rng.choice((*OPERATORS, "", " ", r"\cdot\sin"))
    most = LONGEST // max(1, len(piece) + len(separator)) + 1
    return separator.join([piece] * rng.choice((2, 10, 30, 63, 64, 65, most)))


def collection(rng: Random, golds: Sequence[str]) -> str:
    """Write a list, set, tuple, interval, union or matrix of parts that are almost equal."""
    part = _expression(rng, rng.randrange(1, 4))
    parts = [
        rng.choice((f"{part}+{index}", rf"\sqrt{{{part}+{index}}}", f"{index}{part}", part, rng.choice(golds)))
        for index in range(rng.choice((2, 3, 8, 30, 60, 64)))
    ]
    separator = rng.choice((", ", ";", " and ", r" \text{ or } ", "&", r"\\", r"\cup"))
    return _inside(rng.choice(STRUCTURES), separator.join(parts))


def polynomial(rng: Random, _: Sequence[str]) -> str:
    names = rng.sample("xyznabc", rng.randrange(1, 5))
    return "+".join(
        (_number(rng) if rng.random() < 0.3 else "") + "".join(f"{name}^{{{rng.randrange(99)}}}" for name in names)
        for _ in range(rng.choice((2, 10, 40, 99)))
    )


def soup(rng: Random, _: Sequence[str]) -> str:
    pieces = [*FUNCTIONS, *SYMBOLS, *OPERATORS, *WORDS, *BRACKETS, "^", "_", "1", "23"]
    return rng.choice(("", " ")).join(rng.choices(pieces, k=rng.choice((3, 10, 40, 200, 900))))


def characters(rng: Random, _: Sequence[str]) -> str:
    low, high = rng.choice(_RANGES)
    return "".join(chr(rng.randrange(low, high)) for _ in range(rng.choice((1, 5, 30, 300, 2000))))


def sentence(rng: Random, golds: Sequence[str]) -> str:
    text = " ".join(rng.choices([*WORDS, rng.choice(golds), _number(rng)], k=rng.randrange(1, 30)))
    return rng.choice((text, rf"\text{{{text}}}", rf"{_number(rng)} \text{{ {text}}}"))


_KINDS: dict[Callable[[Random, Sequence[str]], str], int] = {
    mutation: 25,
    expression: 20,
    bomb: 20,
    repetition: 8,
    collection: 8,
    polynomial: 3,
    soup: 8,
    characters: 3,
    sentence: 5,
}


def _inside(nest: str, text: str) -> str:
    return nest.replace(HOLE, text)


def _number(rng: Random) -> str:
    bits = rng.choice((4, 10, 64, 1300))
    return rng.choice(
        (
            str(rng.randrange(-20, 1000)),
            str(rng.randrange(1, 20)),
            "9" * rng.choice((1, 3, 20, 390, 400, 401, 1900)),
            f"{rng.randrange(1000)}.{rng.getrandbits(bits)}",
            f"{rng.randrange(1, 10)}e{rng.choice((2, 33, 400, 99999, 10**12))}",
            f"{rng.randrange(1, 1000)}{rng.choice((',000', '{,}000', ' 000'))}",
            rf"10^{{{rng.choice((3, 300, 99999, 10**9, 10**30))}}}",
            f"{rng.choice((5, 20, 170, 999, 9999, 10**6))}!",
            rf"\frac{{{rng.getrandbits(bits)}}}{{{rng.getrandbits(bits)}}}",
        )
    )


def _expression(rng: Random, depth: int) -> str:
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice(SYMBOLS) if rng.random() < 0.5 else _number(rng)
    inner = _expression(rng, depth - 1)
    if rng.random() < 0.6:
        return _inside(rng.choice(NESTS), inner)
    return inner + rng.choice(OPERATORS[:16]) + _expression(rng, depth - 2)

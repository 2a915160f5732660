"""Fuzzing of the tasks' evaluators: they are correct, never raise, never take long and execute nothing.

Fuzzing runs in a process of its own, ``python -m tests.integration.faults.test_evaluators TASK COUNT SEED``,
because an audit hook cannot be removed.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug_tasks_countdown import grading as countdown
from esplug_tasks_countdown import reward as countdown_reward
from esplug_tasks_math import defaults, expressions, grading, options
from esplug_tasks_math import reward as math_reward
from esplug_tasks_math.grading import accepted, same_answer
from tests.helpers.amount import amount

Random = random.Random
ORACLE_PAIRS = 10_000
LIBRARIES = (sys.prefix, sys.base_prefix)
#: Strings per task, and CPU seconds that one string may take.
COUNT, LIMITS = amount(15_000, 100_000), {"countdown": 0.05, "math": 2.0}
#: Repeated measurements of a string that took too long.
RETRIES = 3

CALL = "__import__('os').system('touch /tmp/esplug-was-here')"
COMMON = [
    "", " ", "\x00", "\ud800", "\udcff" * 100, "\u202e8=5+3\u202c", "\u200f3\u200f+\u200f5", "\ufeff3+5",
    "\u0663+\u0665", "\uff13\uff0b\uff15", "\U0001d7d1+\U0001d7d3", "\u2167", "3\u00b2", "\u00bd",
    "3\u00a0+\u00a05", "3\u22125", "(" * 100_000, "(" * 100_000 + "3" + ")" * 100_000,
    "[" * 99_999, "9" * 1_000_000, "9" * 4_301, "-" * 100_000 + "3", "9**9**9**9", "9**" * 60 + "9", "10" + "!" * 5,
    "1e999999999", "0x10", "1_000", "1j", "1" + "/9" * 99, "nan", "inf", "None", "lambda: 0", CALL, f"{{{CALL}}}",
    f"{{{CALL}!r:{{0}}}}", "%s%n%d", "eval('1')", "().__class__.__mro__[1].__subclasses__()", "[x for x in [1]]",
    "(yield)", "(a:=8)", "f'{8}'", "3+5 if 1 else 0", "3+5#", "3+5\\\n", "3;5", "a" * 1_000_000, "3+5 " * 250_000,
    "\n" * 1_000_000, "<answer>" * 125_000, "</answer>" * 111_111, "<think>" * 140_000, r"\boxed{" * 20_000,
    r"\boxed{" * 5_000 + "8" + "}" * 5_000, r"\boxed" * 160_000, "{}" * 500_000, "}" * 1_000_000, r"\\" * 500_000,
]  # fmt: skip
LATEX = [
    r"\input{/etc/passwd}", r"\text{words}\input{/etc/passwd}", r"\include{/etc/passwd}", r"\write18{touch /tmp/x}",
    r"\text{so many words}\immediate\write18{touch /tmp/x}", r"\openin5=/etc/passwd", r"\csname input\endcsname",
    r"\def\a{\a\a}\a", r"\text{two words}\def\a{\a\a}\a", r"\newcommand{\a}{\a\a}\a", r"\let\a\b", r"\catcode`\{=12",
    r"\begin{verbatim}\end{verbatim}", r"\begin{a}" * 400, r"\verb|8|", r"\text{a word \verb}", r"\href{x}{y}",
    r"\frac" * 300, r"\frac{" * 400, r"\sqrt[" * 300, "^" * 1_000, "_{" * 30 + "}" * 30, "x_" * 700, r"\left(" * 200,
    r"\text{" * 29 + "so" + "}" * 29, r"\overline{3}", r"0.\overline{" + "3" * 399 + "}", "1.5e400", "10^{400}",
    r"\frac{1}{" + "9" * 400 + "}", "9" * 390 + "!", "99999!", "9999!!", r"9^{9^{9^9}}", r"2^{2^{2^{2^{2^{2}}}}}",
    r"(x+y)^{999}", r"\sqrt{" * 28 + "x" + "}" * 28, r"\log_{0} 0", r"\frac{0}{0}", r"0^{-1}", r"\tan\frac{\pi}{2}",
    r"\lfloor" * 200, r"|" * 500, "x!" * 100, r"\binom{x}{" * 20 + "1" + "}" * 20, r"\pm" * 300, "1,2;" * 60,
    r"\operatorname{eval}(1)", r"\operatorname{exec}(x)", rf"\text{{{CALL}}}", rf"\mathrm{{{CALL}}}", "eval(x)",
    r"\{" * 500, r"\{x|" * 28, "[1,2)" * 100, r"\cup" * 300, "=" * 1_000, "x=" * 300, "x<" * 300, r"\in" * 300,
    r"\begin{pmatrix}" + "1&" * 500 + r"\end{pmatrix}", r"\begin{array}{" + "c" * 900 + "}1\\end{array}",
]  # fmt: skip
GOLDS = [
    "7", "-3", "033", r"\frac{17}{3}", "0.25", r"3\sqrt{17}", "7-4i", "x=9", "4,-1", "63_8", "(4,9]", r"\text{East}",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\{1,2\}", "y=5x+8", r"90^\circ", r"62.5\%", r"\text{(C)}", "x^2+1",
    r"(0,7) \cup (7,49)", r"\binom{n}{2}", r"5\text{ cm}^2", "['9.6\\n', '9.60']", "two words", "n!", r"x \geq 2",
]  # fmt: skip
PIECES = [
    r"\frac", r"\sqrt", "{", "}", "^", "_", "x", "n", "2", "7", "10", "0.5", "(", ")", ",", r"\pm", "=", r"\cup", "i",
    r"\text{or}", r"\{", r"\}", "|", "!", r"\infty", r"\in", "[", "]", r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\",
    "°", "%", r"\$", ".", "-", "+", "/", "*", r"\cdot", r"\log", r"\sin", r"\lfloor", r"\rfloor", r"\binom", "'", ";",
    r"\dot", "e", r"\pi", "<", r"\leq", r"\text{cm}", r"\theta",
]  # fmt: skip
TAGS = ["<think>", "</think>", "<answer>", "</answer>", "\n", "(", ")", "3", "5", "8", "+", "-", "*", "/", "**", " "]


# --- strings -----------------------------------------------------------------------------------------------


def any_text(rng: Random) -> str:
    tops = (0x7F, 0x3FF, 0xFFFF, 0x10FFFF)
    return "".join(chr(rng.randint(0, rng.choice(tops))) for _ in range(rng.randrange(60)))


def from_alphabet(alphabet: str | list[str], most: int) -> Callable[[Random], str]:
    return lambda rng: "".join(rng.choices(alphabet, k=rng.randrange(1, most)))


def mutant(rng: Random) -> str:
    text = list(accepted(rng.choice(GOLDS))[0])
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        text[at : at + rng.randrange(2)] = rng.choice([[], [rng.choice(PIECES)], text[:at], text[at : at + 3]])
    return "".join(text)


def mixture(kinds: list[tuple[int, Callable[[Random], str]]]) -> Callable[[Random], str]:
    weights, makers = zip(*kinds, strict=True)
    return lambda rng: rng.choices(makers, weights)[0](rng)


def countdown_text(rng: Random) -> str:
    text = COUNTDOWN_TEXTS(rng)
    form = rng.randrange(5)
    return (f"so</think>\n<answer>{text}</answer>", f"<answer>{text}</answer>", text, f"{text}<answer>", text)[form]


def math_text(rng: Random) -> str:
    text = MATH_TEXTS(rng)
    forms = (rf"\boxed{{{text}}}", rf"so $\boxed{{{text}}}$.", rf"\boxed{text}", rf"\boxed{{\text{{{text}}}}}", text)
    return rng.choices(forms, (10, 4, 1, 1, 1))[0]


EXPRESSIONS = from_alphabet("0123456789+-*/() ", 40)
COUNTDOWN_TEXTS = mixture(
    [(40, EXPRESSIONS), (20, from_alphabet(TAGS, 30)), (20, any_text), (10, from_alphabet("35+-*/()", 200))]
)
MATH_TEXTS = mixture(
    [(30, any_text), (30, from_alphabet(r"\{}()[]^_!|,=<>+-/ 019.xeidf$%&", 30)), (20, from_alphabet(PIECES, 12)),
     (20, mutant)]
)  # fmt: skip


def grade_countdown(text: str, rng: Random) -> Any:
    result = countdown_reward(text, {"numbers": [3, 5], "target": "8"})
    assert 0.0 <= result.value <= 1.1
    assert result.correct == (result.label == "correct") == (result.value >= 1.0)
    return result


def grade_math(text: str, rng: Random) -> Any:
    result = math_reward(text, rng.choice(GOLDS))
    assert result.value in (0.0, 1.0)
    assert result.correct == (result.label == "correct") == (result.value == 1.0)
    assert result.label in ("correct", "wrong", "unparsable", "no_box")
    return result


ANSWERS = ("{}", "<answer>{}</answer>", "</think>\n<answer>{}</answer>")
BOXES = ("{}", r"\boxed{{{}}}", r"\boxed{{x+{}}}", r"\boxed{{\text{{so {}}}}}")
TASKS = {
    "countdown": (countdown_text, grade_countdown, COMMON, ANSWERS),
    "math": (math_text, grade_math, COMMON + LATEX, BOXES),
}


# --- the process that fuzzes -------------------------------------------------------------------------------


def is_harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    """Return whether an audit event is unrelated to the graded text.

    It has not if something is only looked at; if a library of this Python is imported; if text is parsed to a
    syntax tree (``ast.parse``); or if sympy writes its loops over monomials, one line for each of the variables.
    """
    match event, arguments:
        case (("object.__getattr__" | "builtins.id" | "sys._getframe" | "import" | "os.listdir" | "marshal.loads"), _):
            return True
        case "open", (str() as path, mode, _):
            return mode == "r" and path.startswith(LIBRARIES)
        case "compile", (source, file):
            return file == "<unknown>" or bytes(source or b"").startswith(b"def monomial_")
        case "exec", (code,):
            monomials = code.co_filename == "<string>" and [name[:9] for name in code.co_names] == ["monomial_"]
            return monomials or code.co_filename.startswith(LIBRARIES)
    return False


def fuzz(task: str, count: int, seed: int) -> dict[str, Any]:
    """Grade ``count`` strings, and return their labels, the slowest ones, and the audit events."""
    text_of, grade, hostile, forms = TASKS[task]
    rng = Random(seed)
    outcome: dict[str, Any] = {"labels": Counter(), "raised": [], "slow": [], "worst": 0.0, "events": Counter()}
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and not is_harmless(event, arguments):
            outcome["events"][f"{event} {ascii(arguments)[:200]}"] += 1

    def seconds(text: str, golds: Random) -> float:
        start = time.process_time()
        outcome["labels"][grade(text, golds).label] += 1
        return time.process_time() - start

    def one(text: str) -> None:
        state = rng.getstate()
        try:
            took = seconds(text, rng)
            for _ in range(RETRIES):  # another process may have caused the delay
                if took < LIMITS[task]:
                    break
                expressions.expression.cache_clear()
                rng.setstate(state)
                took = min(took, seconds(text, rng))
        except BaseException as error:
            outcome["raised"].append(f"{ascii(text)[:200]}: {error!r}"[:400])
            return
        outcome["worst"] = max(outcome["worst"], took)
        if took >= LIMITS[task]:
            outcome["slow"].append(f"{took:.3f} s: {ascii(text)[:200]}")

    sys.addaudithook(hook)
    for _ in range(300):  # libraries import and compile lazily
        one(text_of(rng))
    for text in hostile:
        one(forms[-1].format(text))
    outcome.update(labels=Counter(), worst=0.0)
    watching = True
    start = time.process_time()
    for form in forms:
        for text in hostile:
            one(form.format(text))
    while outcome["labels"].total() < count and len(outcome["raised"]) < 100:
        one(text_of(rng))
    watching = False
    return outcome | {"seconds": time.process_time() - start}


@pytest.mark.more
@pytest.mark.fault("evaluator fuzzed", COUNT)
@pytest.mark.parametrize("task", TASKS)
def test_fuzzing_raises_nothing_is_fast_and_executes_nothing(task: str) -> None:
    command = [sys.executable, "-m", "tests.integration.faults.test_evaluators", task, str(COUNT), "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr == ""  # nothing is printed about the text either
    outcome = json.loads(done.stdout)
    assert outcome["raised"] == []
    assert outcome["events"] == {}
    assert outcome["slow"] == []
    assert sum(outcome["labels"].values()) >= COUNT
    assert not Path("/tmp/esplug-was-here").exists()
    assert LIMITS["math"] < defaults(dict(options()))["reward_function_timeout"]


def test_the_audit_hook_notices_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import tests.integration.faults.test_evaluators as t, os\n"
        "t.TASKS['countdown'] = (t.countdown_text, lambda text, rng: eval('t.grade_countdown(text, rng)', "
        "{'t': t, 'text': text, 'rng': rng}), [], ('{}',))\n"
        "print(sorted({event.split()[0] for event in t.fuzz('countdown', 10, 0)['events']}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout == "['compile', 'exec']\n", done.stderr


@settings(max_examples=300, deadline=None)
@given(st.text() | st.binary().map(lambda raw: raw.decode(errors="surrogateescape")), st.integers(0, 2**32))
def test_no_text_makes_them_raise(text: str, seed: int) -> None:
    for _, grade, _, forms in TASKS.values():
        for form in forms:
            grade(form.format(text), Random(seed))


# --- results known by construction -----------------------------------------------------------------


class Tree:
    """An arithmetic expression: its exact value (``None`` if it divides by zero), its text and its numbers."""

    def __init__(self, rng: Random, leaves: int) -> None:
        self.strength = 3
        if leaves == 1:
            number = rng.choice([rng.randrange(10), rng.randrange(100), rng.randrange(10**6)])
            self.value: Fraction | None = Fraction(number)
            self.text, self.numbers = str(number), [number]
            return
        split = rng.randrange(1, leaves)
        left, right, sign = Tree(rng, split), Tree(rng, leaves - split), rng.choice("+-*/")
        self.strength = 1 if sign in "+-" else 2
        self.value = self._combined(left.value, sign, right.value)
        gap = rng.choice(["", " "])
        first = left.within(self.strength, rng)
        self.text = f"{first}{gap}{sign}{gap}{right.within(self.strength + 1, rng)}"
        self.numbers = left.numbers + right.numbers
        if rng.random() < 0.1 and not self.text.startswith("-"):  # a sign may open an expression
            self.value = None if self.value is None else -self.value
            self.text, self.strength = f"-({self.text})", 0

    @staticmethod
    def _combined(a: Fraction | None, sign: str, b: Fraction | None) -> Fraction | None:
        if a is None or b is None or (sign == "/" and b == 0):
            return None
        top, bottom = {
            "+": (a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator),
            "-": (a.numerator * b.denominator - b.numerator * a.denominator, a.denominator * b.denominator),
            "*": (a.numerator * b.numerator, a.denominator * b.denominator),
            "/": (a.numerator * b.denominator, a.denominator * b.numerator),
        }[sign]
        return Fraction(top, bottom)

    def within(self, strength: int, rng: Random) -> str:
        return f"({self.text})" if self.strength < strength or rng.random() < 0.1 else self.text


@pytest.mark.fault("evaluator against an exact oracle", ORACLE_PAIRS)
def test_countdown_agrees_with_ten_thousand_known_values() -> None:
    rng = Random(5)
    labels: Counter[str] = Counter()
    for _ in range(ORACLE_PAIRS):
        tree = Tree(rng, rng.randrange(1, 8))
        numbers = rng.sample(tree.numbers, len(tree.numbers))
        if tree.value is None:
            with pytest.raises(ZeroDivisionError):
                countdown.evaluate(tree.text)
            expected = {(tuple(numbers), Fraction(8)): "wrong_value"}
        else:
            assert countdown.evaluate(tree.text) == tree.value, tree.text
            expected = {
                (tuple(numbers), tree.value): "correct",
                (tuple(numbers), tree.value + Fraction(1, 100_000)): "correct",
                (tuple(numbers), tree.value - Fraction(1, 99_999)): "wrong_value",
                ((*numbers, 1), tree.value): "wrong_numbers",
                (tuple(numbers[1:]), tree.value): "wrong_numbers",
                ((numbers[0] + 1, *numbers[1:]), tree.value): "wrong_numbers",
            }
        for (given_numbers, target), label in expected.items():
            found = countdown.grade(f"so</think>\n<answer>{tree.text}</answer>", given_numbers, target)
            assert found.label == label, (tree.text, given_numbers, target)
            labels[label] += 1
    assert min(labels.values()) > 100


def spellings(rng: Random, value: Fraction) -> list[str]:
    """Return texts that all denote a rational number exactly."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    factor = rng.randrange(1, 30)
    found = [rf"{sign}\frac{{{top}}}{{{bottom}}}", f"{sign}{top}/{bottom}", rf"\dfrac{{{sign}{top}}}{{{bottom}}}"]
    found += [rf"{sign}\frac{{{top * factor}}}{{{bottom * factor}}}", f"{sign}{top * factor}/{bottom * factor}"]
    if bottom == 1:
        grouped = f"{sign}{top:,}"
        found += [f"{sign}{top}", f"{sign}0{top}", f"{sign}{top}.0", grouped, grouped.replace(",", "{,}")]
    elif top > bottom:
        found.append(rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}")
    if 10**6 % bottom == 0:
        decimal = f"{sign}{top // bottom}.{top % bottom * 10**6 // bottom:06d}"
        found += [decimal, decimal.rstrip("0").rstrip("."), rf"{decimal} \times 10^{{0}}", f"{decimal}e0"]
        shifted = top * 10**6 // bottom
        found += [rf"{sign}{shifted} \times 10^{{-6}}", rf"{sign}{shifted}\cdot10^{{-6}}"]
    return found


def dressed(rng: Random, answer: str) -> str:
    bracketed = answer if "," in answer else rf"\left({answer}\right)"  # (1,000) is a pair
    return rng.choice([
        rf"\boxed{{{answer}}}", rf"so $\boxed{{{answer}}}$.", rf"\boxed{{1}}, no: \fbox{{ {answer} }}",
        rf"\boxed{{${answer}$}}", rf"\boxed{{{bracketed}}}", rf"\boxed{{x = {answer}}}",
        rf"\boxed{{\boxed{{{answer}}}}}",
    ])  # fmt: skip


def rational_pair(rng: Random) -> tuple[str, str, bool]:
    most = rng.choice([9, 100, 10**6])
    value = Fraction(rng.randint(-most, most), rng.choice([1, 1, 2, 8, 10, 125, rng.randint(1, most)]))
    same = rng.random() < 0.5
    other = value if same else value + rng.choice([-1, 1]) * Fraction(1, rng.choice([1, value.denominator, 1000]))
    return dressed(rng, rng.choice(spellings(rng, other))), rng.choice(spellings(rng, value)), same


def unit_pair(rng: Random) -> tuple[str, str, bool]:
    units = ["cm", "m", "seconds", "hours", "dollars", "cents", "kg", "degrees"]
    value, same = Fraction(rng.randint(1, 999), rng.choice([1, 1, 4])), rng.random() < 0.5
    unit, gold_unit = rng.sample(units, 2)
    if same:
        unit = rng.choice([gold_unit, ""])
    elif rng.random() < 0.5:
        unit, value = gold_unit, value + 1
    written, gold = (rng.choice(spellings(rng, each)) for each in (value, value - (not same and unit == gold_unit)))
    quantity = rf"{written} \text{{ {unit}}}" if unit else written
    return rf"\boxed{{{quantity}}}", rf"{gold} \text{{ {gold_unit}}}", same


def surd_pair(rng: Random) -> tuple[str, str, bool]:
    a, b, c = rng.randint(2, 30), rng.choice([2, 3, 5, 6, 7, 10, 11]), rng.randint(-20, 20)
    same = rng.random() < 0.5
    return rf"\boxed{{{c}+\sqrt{{{a * a * b + (not same)}}}}}", rf"{a}\sqrt{{{b}}}+{c}", same


def polynomial_pair(rng: Random) -> tuple[str, str, bool]:
    a, b, same = rng.randint(1, 30), rng.randint(1, 30), rng.random() < 0.5
    return rf"\boxed{{(x+{a})(x-{b})}}", f"x^2+{a}x-{b}x-{a * b + (not same)}", same


@pytest.mark.fault("evaluator against an exact oracle", ORACLE_PAIRS)
def test_math_agrees_with_ten_thousand_known_pairs() -> None:
    rng = Random(6)
    kinds = {rational_pair: 8_500, unit_pair: 900, surd_pair: 300, polynomial_pair: 300}
    assert sum(kinds.values()) == ORACLE_PAIRS
    wrong = [
        (output, gold, same)
        for kind, count in kinds.items()
        for output, gold, same in (kind(rng) for _ in range(count))
        if grading.grade(output, gold, "off").correct != same
    ]
    assert wrong == []
    assert same_answer("1", "1")


if __name__ == "__main__":
    print(json.dumps(fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

"""How far the task ``math`` requires an answer to be simplified, and how long it may take to grade one."""

import random
import time

import pytest

from esplug.errors import UserError
from esplug.plugins.task import Task
from esplug_tasks_math import small
from esplug_tasks_math.grading import outcome
from tests.helpers.math_kinds import KINDS
from tests.helpers.math_pairs import PAIRS
from tests.helpers.timing import limit

FORMS = ("off", "numbers", "strict")


def reward(answer: str, gold: str, **row: str) -> float:
    """Grade through the hooks, as a run does."""
    option = {"exact_form": row.pop("option")} if "option" in row else {}
    task = Task.load("math", option)
    _, (target,) = task.collate([{"problem": "?", "answer": gold} | row])
    return task.reward(rf"\boxed{{{answer}}}", target).value


@pytest.mark.parametrize(
    ("answer", "gold", "accepted"),
    [
        ("5", "5", FORMS),
        ("5.0", "5", FORMS),
        (r"\frac{3}{7}", r"\frac{6}{14}", FORMS),
        (r"\frac{6}{14}", r"\frac{6}{14}", FORMS),
        (r"\frac{9}{21}", r"\frac{6}{14}", FORMS),
        (r"\frac{6}{14}", r"\frac{3}{7}", ("off", "numbers")),
        ("6/14", r"\frac{3}{7}", ("off", "numbers")),
        (r"(\frac{2}{4}, 1)", r"(\frac{1}{2}, 1)", ("off", "numbers")),
        (r"\frac{6\pi}{4}", r"\frac{3\pi}{2}", ("off", "numbers")),
        ("0.75", r"\frac{3}{4}", FORMS),
        ("20 - 18", "2", ("off",)),
        (r"\frac{10}{2}", "5", ("off",)),
        (r"\sqrt{12}", r"2\sqrt{3}", ("off",)),
        (r"2\sqrt{3}", r"\sqrt{12}", FORMS),
        (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}", FORMS),
        ("2x+3x", "5x", ("off",)),
        ("(x-1)(x+1)", "x^2-1", ("off", "numbers")),
        ("(x+1)^2", "x^2+2x+1", ("off", "numbers")),
        ("x^2-1", "(x-1)(x+1)", ("off", "numbers")),
        ("(x+1)(x-1)", "(x-1)(x+1)", FORMS),
        ("-1+x^2", "x^2-1", FORMS),
        ("4(3r^3+5r-6)-6(2r^3-r^2+4r)", "6r^2-4r-24", ("off", "numbers")),
        ("(-k+4)+(-2+3k)", "2k+2", ("off",)),
        ("6r^2-(4r+24)", "6r^2-4r-24", FORMS),
        ("3(x-2)^2+5", "3(x-2)^2+5", FORMS),
        ("5+3(x-2)^2", "3(x-2)^2+5", FORMS),
        (r"\frac{(10r^3)(4r^6)}{8r^4}", "5r^5", ("off",)),
        (r"\frac{x^7}{x^2}", "x^5", ("off", "numbers")),
        ("x^2 x^3", "x^5", ("off", "numbers")),
        ("(x^2)^3", "x^6", ("off", "numbers")),
        (r"\frac{x^2-1}{x-1}", "x+1", ("off", "numbers")),
        ("2xy", "2yx", FORMS),
        (r"\frac{x}{y^2}", r"\frac{x}{y^{2}}", FORMS),
        (r"\frac{1}{x+1}", r"\frac{1}{1+x}", FORMS),
        ("x^{2n}", "x^{2 n}", FORMS),
        (r"\frac{1}{3x^{2/3}}", r"\frac{1}{3\sqrt[3]{x}^2}", FORMS),
        ("2i+1", "1+2i", FORMS),
        ("2(1+i)", "2+2i", FORMS),
        (r"\frac{1+i}{2}", r"\frac12+\frac{i}{2}", FORMS),
        (r"\frac{-3+4i}{1+2i}", "1+2i", ("off",)),
        (r"\frac{\pi}{4}", r"45^\circ", ("off", "numbers")),
        ("-(5)", "-5", FORMS),
        ("2(k+1)", "2k+2", FORMS),
        ("2x-y+3=0", "y=2x+3", ("off", "numbers")),
        ("3+2x=y", "y=2x+3", FORMS),
        ("2x+3=13", "x=5", ()),
        (r"90\text{ min}", r"1.5\text{ hours}", ("off", "numbers")),
        (r"1.5\text{ h}", r"1.5\text{ hours}", FORMS),
        ("1.5", r"1.5\text{ hours}", FORMS),
    ],
)
def test_forms(answer, gold, accepted) -> None:
    assert tuple(form for form in FORMS if reward(answer, gold, option=form)) == accepted


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({}, True),
        ({"exact_form": ""}, True),
        ({"exact_form": "strict"}, False),
        ({"exact_form": "numbers"}, True),
        ({"exact_form": "strict", "option": "numbers"}, True),
        ({"option": "strict"}, False),
        ({"exact_form": "off", "option": "strict"}, False),
    ],
)
def test_a_row_declares_its_form_unless_the_option_does(row, right) -> None:
    assert reward(r"\frac{2}{4}", r"\frac{1}{2}", **row) == right


def test_a_target_keeps_its_form_in_a_grading_process() -> None:
    import pickle

    task = Task.load("math")
    _, targets = task.collate([{"problem": "?", "answer": "5", "exact_form": "strict"}])
    assert targets == ["5"]
    (target,) = pickle.loads(pickle.dumps(targets))
    assert task.reward(r"\boxed{5}", target).value == 1.0
    assert task.reward(r"\boxed{4+1}", target).value == 0.0


@pytest.mark.parametrize("where", ["option", "exact_form"])
def test_an_unknown_form_is_rejected(where) -> None:
    with pytest.raises(UserError, match=r"exact_form must be one of .*, not 'strictly'"):
        reward("5", "5", **{where: "strictly"})


def test_the_small_sets_are_strict_and_a_restated_problem_earns_nothing() -> None:
    task = Task.load("math")
    rows = [row for split in small.rows("eval").values() for row in split]
    questions, targets = task.collate(rows)
    for question, target in zip(questions, targets, strict=True):
        assert task.reward(rf"\boxed{{{target}}}", target).value == 1.0
        formulas = [piece for at, piece in enumerate(question.split("$")) if at % 2]
        words = question.rstrip("?.").replace("What is ", "").replace("Compute ", "")
        for echo in [*formulas, words, " + ".join(formulas), f"{target} + 0", rf"{target} \cdot 1", f"2({target})/2"]:
            assert task.reward(rf"\boxed{{{echo}}}", target).value == 0.0, (question, echo, target)


def test_every_gold_answer_has_its_own_form() -> None:
    for *_, gold, _same in [*PAIRS, *KINDS]:
        if gold:
            assert {outcome(f" {gold} ", gold, form) for form in FORMS} == {"correct"}


NESTED = [
    r"\sinh^{-1}(x^2+1+" * 14 + "x" + ")" * 14,
    r"\ln(x+" * 15 + "x" + ")" * 15,
    r"\log_{2}(x^2+1+" * 25 + "x" + ")" * 25,
    r"\cosh(" * 20 + "x" + ")" * 20,
    "2^{" * 25 + "x" + "}" * 25,
    "x^{x+" * 25 + "x" + "}" * 25,
    r"\sqrt{x+" * 28 + "x" + "}" * 28,
    r"\sqrt[7]{x+\sin x+" * 28 + "x" + "}" * 28,
    r"\frac{1}{x+" * 28 + "x" + "}" * 28,
    r"\lfloor " * 28 + "x" + r"\rfloor " * 28,
    "|" * 200 + "x" + "|" * 200,
    r"\binom{n}{" * 20 + "n" + "}" * 20,
    "(" * 28 + "x!" + ")!" * 28,
    "+".join(rf"\sin({n}x)" for n in range(150)),
    r"\cdot".join(f"{n}!" for n in range(1000, 1250)),
    "+".join(rf"\sqrt[{n}]{{x}}" for n in range(2, 120)),
    "9" * 390 + "^{" + "9" * 390 + "}",
    ",".join(rf"\sin({n}x)" for n in range(60)),
    r"\{" + ",".join(rf"\sqrt{{x+{n}}}" for n in range(60)) + r"\}",
    r"\begin{pmatrix}" + r"\\".join(["&".join(rf"\ln(x+{n})" for n in range(8))] * 8) + r"\end{pmatrix}",
    r"\cup".join(f"({n},{n + 1})" for n in range(60)),
    "=".join(rf"\sin^2({n})+\cos^2({n})" for n in range(1, 60)),
    r"\approx".join(rf"\ln({n})" for n in range(1, 190)),
    ":".join(f"{n}x" for n in range(1, 300)),
    "0." + "12" * 190 + r"\ldots",
    r"\pm" * 900,
    "-" * 1990,
    r"5\text{ " + "a " * 900 + "}",
    "5 " + "m/s " * 450,
    "x_{" * 28 + "x" + "}" * 28,
    "*" * 1900,
    "`" * 1900,
    r"\sum_{k=1}^{10^9} k!",
    r"\int_0^1 " * 200,
    r"\binom{\ln(x^2+1+\theta)}{2} \cdot 999!/" + "9" * 390,
    r"\binom{n}{" * 28 + r"\frac{" + "7" * 390 + "}{" + "9" * 390 + "}" + "}" * 28,
    r"\max(\dot{x}! + \frac{" + "7" * 390 + "}{" + "9" * 390 + "}, 1)",
    "+".join(f"({n}+i)!" for n in range(60)),
    r"\left|,\mp",
    r",\text{,}",
]
GOLDS = [
    "5",
    r"\sqrt{x+1}",
    "x",
    "1,2,x+1",
    r"\{1,2,x\}",
    r"\begin{pmatrix} 1 \\ x \end{pmatrix}",
    "(2,5)",
    "x=5",
    "1:2",
    "1,234",
]


@pytest.mark.parametrize("text", NESTED, ids=lambda text: ascii(text[:16]))
def test_an_answer_is_graded_in_half_a_second(text) -> None:
    limit(seconds(text[:2000]), 0.5)


ATOMS = ["x", "n", "2", "7", "0.5", r"\pi", "e", "10", "999", r"\infty", "i", r"\theta"]
WRAPPERS = [
    r"\sin(%s)", r"\ln(%s)", r"\sqrt{%s}", r"\frac{1}{%s}", "(%s)^{%s}", "%s+%s", r"%s\cdot %s", r"\frac{%s}{%s}",
    "|%s|",
    r"\lfloor %s\rfloor", "(%s)!", r"\sinh^{-1}(%s)", r"\log_{%s}(%s)", r"\binom{%s}{%s}", r"\sqrt[%s]{%s}", "%s=%s",
    "(%s,%s)", r"\max(%s,%s)", r"\{%s,%s\}", r"[%s,%s]\cup(%s,%s)", "%s:%s", r"%s \approx %s", r"%s\text{ m/s}",
    "e^{%s}",
    r"\begin{pmatrix}%s\\%s\end{pmatrix}", "%s<%s", r"\tan(%s)", r"%s\pm %s",
]  # fmt: skip


def fuzzed(rng: random.Random) -> str:
    """Return a large random expression of at most 2,000 characters."""
    text = rng.choice(ATOMS)
    while True:
        wrapper = rng.choice(WRAPPERS)
        count = wrapper.count("%s")
        inner = [text, *(rng.choice([text, *ATOMS]) for _ in range(count - 1))]
        larger = wrapper % tuple(inner)
        if len(larger) > 2000:
            return text
        text = larger


def test_fuzzed_answers_are_graded_in_half_a_second() -> None:
    rng = random.Random(3)
    answers = [fuzzed(rng) for _ in range(60)]
    slow = [(text, taken) for text in answers if (taken := seconds(text)) >= 0.5]
    assert slow == []


def seconds(text: str) -> float:
    """Return the longest CPU time to grade a text, in itself and against itself with a space."""
    longest = 0.0
    for gold in [*GOLDS, f"{text}+1"[-2000:], text.replace("x", "y", 1)]:
        started = time.process_time()
        outcome(text, gold)
        longest = max(longest, time.process_time() - started)
    return longest

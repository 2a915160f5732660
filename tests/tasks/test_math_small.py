"""The small mathematics set: every answer recomputed from the text alone, no repetition, no overlap."""

import math
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug_tasks_math import small

DATASETS = Path(__file__).parents[2] / "datasets"
TRAIN, EVAL = small.rows("train"), small.rows("eval")
PROBLEMS = [(kind, problem) for kind in small.KINDS for split in small.ROWS for problem in small.generate(kind, split)]

#: A piece of each wording of the word problems, and what its numbers make.
WORD_PROBLEMS = {
    r"has \d+ \w+ and buys \d+ packs of": lambda a, b, c: a + b * c,
    r"on the shelf\. Then \w+ brought \d+ boxes": lambda a, b, c: a + b * c,
    "equally among": lambda a, b: a / b,
    "are packed into": lambda a, b: a / b,
    "dollars of change are due": lambda n, price, paid: paid - n * price,
    "is bought": lambda n, price, saved: saved - n * price,
    "drives at": lambda speed, hours, rest: speed * hours + rest,
    "train covers": lambda speed, hours, rest: speed * hours + rest,
    "do they have together": lambda a, more: a + (a + more),
    "sold on the two days": lambda a, more: a + (a + more),
    "half of the rest": lambda a, given: (a - given) / 2,
    "split what was left evenly": lambda a, lost: (a - lost) / 2,
    "meters of fence": lambda a, b: a + b + a + b,
    "walks once around": lambda a, b: a + b + a + b,
    "A book has": lambda pages, a_day, days: pages - a_day * days,
    "must fold": lambda flyers, an_hour, hours: flyers - an_hour * hours,
    "years old": lambda age, times, years: age * times + years,
    "meters tall": lambda height, times, more: height * times + more,
    "one in every": lambda visitors, one_in: visitors - visitors / one_in,
    "gives one heap away": lambda things, heaps: things - things / heaps,
    "average per game": lambda a, b, c: (a + b + c) / 3,
    "They share them equally": lambda a, b, c: (a + b + c) / 3,
    "A coat costs": lambda price, percent: price * (100 - percent) / 100,
    "percent fewer this week": lambda visitors, percent: visitors * (100 - percent) / 100,
}


def value(expression: str, **unknown: Fraction) -> Fraction:
    """Compute a LaTeX expression exactly."""
    text = re.sub(r"\\frac\{(\w+)\}\{(\w+)\}", r"(\1)/(\2)", expression).replace(r"\cdot", "*").replace(r"\div", "/")
    text = re.sub(r"((?:\(\w+\)/\(\w+\)))", r"(\1)", text)
    text = re.sub(r"(\d)([a-z(])", r"\1*\2", text)
    text = re.sub(r"\d+", r"F(\g<0>)", text)
    return Fraction(eval(text, {"F": Fraction}, unknown))


def arithmetic(text: str) -> Fraction:
    numbers = [Fraction(number) for number in re.findall(r"\d+", text)]
    if re.search("-|minus|without", text):
        assert len(numbers) == 2
        return numbers[0] - numbers[1]
    assert re.search(r"\+|[Aa]dd|sum", text)
    return sum(numbers, Fraction(0))


def fractions(text: str) -> Fraction:
    values = [value(expression) for expression in re.findall(r"\$(.+?)\$", text)]
    if len(values) == 1:
        factor = re.search(r"\$ of (?:the number )?(\d+)", text)
        return values[0] * (int(factor[1]) if factor else 1)
    left, right = values
    word = re.search("sum|larger|product|Divide", text)[0]
    return {"sum": left + right, "larger": left - right, "product": left * right, "Divide": left / right}[word]


def word_problem(text: str) -> Fraction:
    (solve,) = [solve for wording, solve in WORD_PROBLEMS.items() if re.search(wording, text)]
    return Fraction(solve(*map(Fraction, re.findall(r"\d+", text))))


def read(answer: str) -> Fraction:
    """Read an answer, which must be a plain whole number or a fraction in lowest terms."""
    if re.fullmatch(r"-?\d+", answer):
        return Fraction(int(answer))
    sign, top, bottom = re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", answer).groups()
    assert int(bottom) > 1
    assert math.gcd(int(top), int(bottom)) == 1
    return Fraction(int(sign + top), int(bottom))


@pytest.mark.parametrize(
    ("kind", "solve"), [("arithmetic", arithmetic), ("fractions", fractions), ("word_problems", word_problem)]
)
def test_every_answer_is_right(kind, solve) -> None:
    rows = [row for row in TRAIN if row["kind"] == kind] + EVAL[kind]
    assert len(rows) == 325
    for row in rows:
        assert solve(row["problem"]) == read(row["answer"]), row


def test_every_solution_solves_its_equation_and_no_other_number_does() -> None:
    for row in [row for row in TRAIN if row["kind"] == "linear_equations"] + EVAL["linear_equations"]:
        formulas = re.findall(r"\$(.+?)\$", row["problem"])
        if len(formulas) == 1 and "=" not in formulas[0]:
            formulas.append(re.search(r"equal to (\d+)\?", row["problem"])[1])
        left, right = formulas if len(formulas) == 2 else formulas[0].split("=")
        (unknown,) = set(re.findall(r"(?<![a-z\\])[a-z](?![a-z])", left))
        assert re.search(rf"(for|For|is|number|which|find|of) {unknown}\b", row["problem"])
        answer = read(row["answer"])
        sides = [[value(side, **{unknown: answer + step}) for side in (left, right)] for step in (0, 1)]
        assert sides[0][0] == sides[0][1], row
        assert sides[1][0] != sides[1][1], row


def test_every_wording_occurs_and_words_vary() -> None:
    texts = [problem.text for kind, problem in PROBLEMS if kind == "word_problems"]
    for wording in WORD_PROBLEMS:
        assert 3 <= sum(bool(re.search(wording, text)) for text in texts) <= 40, wording
    shapes = {re.sub(r"\d+", "#", text) for text in texts}
    assert len(shapes) > 0.75 * len(texts)
    for structures in small.KINDS.values():
        for structure in structures:
            assert sum(problem.structure == structure.name for _, problem in PROBLEMS) >= 15, structure.name


def test_the_text_contains_the_drawn_numbers() -> None:
    for _, problem in PROBLEMS:
        assert tuple(map(int, re.findall(r"\d+", problem.text))) == problem.numbers


def test_arithmetic_is_easy() -> None:
    for row in [row for row in TRAIN if row["kind"] == "arithmetic"] + EVAL["arithmetic"]:
        assert all(len(number) <= 2 for number in re.findall(r"\d+", row["problem"]))
        assert 0 <= int(row["answer"]) <= 70


def test_counts_and_columns() -> None:
    assert len(TRAIN) == 1000
    assert {kind: len(rows) for kind, rows in EVAL.items()} == dict.fromkeys(
        ["arithmetic", "fractions", "linear_equations", "word_problems"], 75
    )
    assert {kind: sum(row["kind"] == kind for row in TRAIN) for kind in small.KINDS} == dict.fromkeys(EVAL, 250)
    for row in [*TRAIN, *(row for rows in EVAL.values() for row in rows)]:
        assert list(row) == ["problem", "answer", "kind", "exact_form"]
        assert all(type(cell) is str and cell == cell.strip() and cell for cell in row.values())
        assert not re.search(r"[<>@]|\{[a-z0-9]+\}(?<!\{[a-z0-9]\})(?<!\d\})", row["problem"])
    assert {row["kind"] for row in EVAL["fractions"]} == {"fractions"}


def test_no_problem_occurs_twice_even_in_other_words() -> None:
    texts = [row["problem"] for row in TRAIN] + [row["problem"] for rows in EVAL.values() for row in rows]
    assert len(set(texts)) == 1300
    assert len({problem.key for _, problem in PROBLEMS}) == 1300
    for kind in small.KINDS:
        for split in small.ROWS:
            assert {problem.split for problem in small.generate(kind, split)} == {split}
    sums, asked = (
        {
            tuple(sorted(re.findall(r"\d+", row["problem"])))
            for row in rows
            if re.search(r"\+|[Aa]dd|sum", row["problem"])
        }
        for rows in ([row for row in TRAIN if row["kind"] == "arithmetic"], EVAL["arithmetic"])
    )
    assert len(sums) > 100
    assert not sums & asked, "7 + 5 and 5 + 7 are one problem"


def test_rows_are_reproducible_and_leave_the_global_random_state_alone() -> None:
    state = random.getstate()
    assert (small.rows("train"), small.rows("eval")) == (TRAIN, EVAL)
    assert random.getstate() == state


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_longer_list_starts_with_the_shorter_one(split) -> None:
    own, more = small.generate("arithmetic", split), small.generate("arithmetic", split, 300)
    assert more[: len(own)] == own
    assert len({problem.key for problem in more}) == 300
    with pytest.raises(ValueError, match=rf"arithmetic has only \d+ problems in the split {split}, not 10000"):
        small.generate("arithmetic", split, 10_000)


def test_an_unknown_split_or_kind_is_rejected() -> None:
    with pytest.raises(ValueError, match="split must be train or eval, not 'test'"):
        small.rows("test")
    with pytest.raises(ValueError, match=r"kind must be one of arithmetic, .*, not 'geometry'"):
        small.generate("geometry", "train")


@given(st.fractions(max_denominator=10_000))
def test_numbers_are_written_in_lowest_terms(number) -> None:
    assert read(small.written(number)) == number


def test_committed_data_is_the_generators_output() -> None:
    from datasets import load_from_disk

    train = load_from_disk(str(DATASETS / "train" / "math_small"))
    assert {name: split.to_list() for name, split in train.items()} == {"train": TRAIN}
    evaluation = load_from_disk(str(DATASETS / "evaluation_suite" / "math_small"))
    assert {name: split.to_list() for name, split in evaluation.items()} == EVAL

"""The benchmarks of the math grader: hostile answers, pairs made by rule or read from tests, and their verdicts."""

import io
import re
import tarfile
from random import Random

import pytest

from benchmarks.grading import agreement, fuzz, hostile, pairs, rewriting
from datasets import Dataset, DatasetDict
from esplug_tasks_math import reward


def test_hostile_answers_depend_on_the_seed_and_their_number_only():
    answers = [hostile.answer(3, number, hostile.GOLDS) for number in range(300)]
    assert answers == [hostile.answer(3, number, hostile.GOLDS) for number in range(300)]
    assert len(set(answers)) > 280
    assert answers != [hostile.answer(4, number, hostile.GOLDS) for number in range(300)]
    assert max(len(answer) for answer, _ in answers) == hostile.LONGEST


def test_a_search_counts_every_answer():
    chunk = fuzz.search(0, 100, 20, tuple(hostile.GOLDS))
    assert (chunk.first, chunk.count, sum(chunk.labels.values()), chunk.crashes) == (100, 20, 20, [])


@pytest.mark.parametrize(
    ("rule", "gold", "answer"),
    [
        ("a/b", r"-\frac{3}{4}", "-3/4"),
        ("unreduced fraction", r"\frac{3}{4}", r"\frac{6}{8}"),
        ("exact decimal", r"\frac{3}{8}", "0.375"),
        ("exact decimal", r"\frac{1}{3}", None),
        ("rounded", r"\frac{1}{3}", "0.333"),
        ("rounded", r"\frac{3}{8}", None),
        ("digits in threes", "12345", "12,345"),
        ("digits in threes", "999", None),
        ("list, other order", "1, -2", "-2, 1"),
        ("list, other order", "10,080", None),  # one number
        ("list as set", "1,1", None),
        ("list with and", "1, 2, 3", r"1, 2 \text{ and }  3"),
        ("spaces", "x=1", "x = 1"),
        ("sum, other order", r"1+\sqrt{2}", r"\sqrt{2} + 1"),
        ("sign", "3", "-3"),
        ("sign", "-x", "x"),
        ("sign", "0", None),
        ("sign", "1-x", None),
        ("one more", "-1", "0"),
        ("tuple swapped", "(1, 2)", "(2, 1)"),
        ("tuple swapped", "(2, 2)", None),
        ("bracket", "[1, 2)", None),
        ("bracket", r"(1, \infty)", r"[1, \infty)"),
        ("bracket", "(1, 2)", None),  # perhaps a point
        ("strict or not", r"x \le 3", "x < 3"),
        ("part dropped", "1, 2", "1"),
        ("other name", "x = 5", "y = 5"),
    ],
)
def test_rules_fit_only_what_they_are_for(rule, gold, answer):
    result = (rewriting.SAME | rewriting.OTHER)[rule](gold, Random(0))
    if rule == "bracket" and gold == "[1, 2)":
        assert result in ("(1, 2)", "[1, 2]")
    else:
        assert result == answer


@pytest.mark.parametrize("gold", ["0", "9", "90", "1.5", "19.99"])
def test_another_digit_is_another_number(gold):
    for seed in range(50):
        changed = rewriting.OTHER["a digit"](gold, Random(seed))
        assert len(changed) == len(gold)
        assert sum(one != other for one, other in zip(gold, changed, strict=True)) == 1


def test_pairs_of_a_suite_are_limited_for_each_rule(tmp_path):
    rows = Dataset.from_dict({"answer": [str(number) for number in range(20)]})
    DatasetDict({"sums": rows}).save_to_disk(tmp_path)
    found = list(pairs.from_suites(tmp_path, seed=0, most=5))
    assert found == list(pairs.from_suites(tmp_path, seed=0, most=5))
    assert sum(pair.source == "sums, itself" for pair in found) == 20
    assert sum(pair.source == "one more" for pair in found) == 5
    assert all(reward(rf"\boxed{{{pair.answer}}}", pair.gold).correct for pair in found if "itself" in pair.source)


def test_pairs_are_read_from_tests_without_running_them(tmp_path):
    module = rb"""
raise SystemExit
CASES = []
@pytest.mark.parametrize(
    "gold, pred, expected",
    [("$1$", "The answer is $1$", 1), ("$[0,1)$", r"\boxed{x}", 0), ("1/3", "$$1/3$$", 1), (math.pi, "3", 0)],
)
def test_one(gold, pred, expected): ...
@pytest.mark.parametrize("text", ["1"])
def test_two(text): ...
"""
    archive = tmp_path / "math_verify.tar.gz"
    with tarfile.open(archive, "w:gz") as files:
        entry = tarfile.TarInfo("math_verify/tests/test_some.py")
        entry.size = len(module)
        files.addfile(entry, io.BytesIO(module))
    found = [(pair.gold, pair.answer, pair.right) for pair in pairs.from_tests(archive)]
    assert found == [("[0,1)", "x", False), ("1/3", "1/3", True)]


def test_verdicts_name_pairs_or_rules():
    known = agreement.verdicts()
    rules = rewriting.SAME | rewriting.OTHER
    assert all(re.fullmatch("[0-9a-f]{12}", key) or key in rules for key in known)
    assert set(known.values()) == {True, False}


def test_a_disagreement_is_settled_by_the_verdict_if_there_is_one():
    pair = pairs.Pair("a rule", "1", "one", right=True)
    outcomes = [
        agreement.Outcome(pair, ours=True, theirs=True, judged=None),
        agreement.Outcome(pair, ours=True, theirs=False, judged=None),
        agreement.Outcome(pair, ours=True, theirs=False, judged=True),
        agreement.Outcome(pair, ours=True, theirs=False, judged=False),
    ]
    row, total = agreement.rows(outcomes)
    assert row == ["a rule", "right", "4", "75.0%", "50.0%", "25.0%", "1", "1", "1"]
    assert total == ["all", "", *row[2:]]

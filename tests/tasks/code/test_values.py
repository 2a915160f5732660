"""Comparison of outputs and values, and the way of values out of the sandbox."""

import pytest

from esplug import Reward
from esplug_tasks_code import judge, solver, values


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        (" 1  2 \n\n", "1 2", True),
        ("1 2", "1\n2", False),
        ("1", "1\n2", False),
        ("YES", "yes", False),
        ("1.0", "1", True),
        ("0.3333333", "0.33333334", True),
        ("0.333", "0.33333334", False),
        ("10000001", "10000002", False),
        ("007", "7", False),
        ("nan", "1.0", False),
        ("inf", "1e9", False),
        ("", "", True),
        ("", "0", False),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "1.0", False),
        ("\u0661", "1", False),
    ],
)
def test_outputs_are_compared(given, expected, same):
    assert values.same_output(given, expected) == same


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ((1, [2]), [1, [2]], True),
        ([1], [1, 1], False),
        (0.1 + 0.2, 0.3, True),
        (1, 1.0, True),
        (float("nan"), 1.0, False),
        (float("inf"), 10**400, False),
        (1.5, 10**400, False),
        ("1", 1, False),
        ({1: (2,)}, {"1": [2]}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        (None, None, True),
        ("a", "a", True),
        ([], {}, False),
    ],
)
def test_values_are_compared(given, expected, same):
    assert values.same_value(given, expected) == same


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -(10**50), 1.5, "a\n\"\u20ac\U0001f600", [], [1, [2]], (), (1, (2,)), {1, 2}, {},
        frozenset({3}), {"a": {1: (2,)}, (1, 2): None}, b"\x00\xff", 1 + 2j, float("inf"), -float("inf"),
    ],
    ids=repr,
)  # fmt: skip
def test_plain_data_survive_the_way_out_of_the_sandbox(value):
    back = judge.decode(solver.encode(value).encode())
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("value", [object(), iter([]), range(3), print, Reward])
def test_other_values_do_not(value):
    with pytest.raises(TypeError):
        solver.encode(value)


@pytest.mark.parametrize("text", ["", "x", "[]", '["z", 1]', "{}", '[["l"]]', '["d", 1]', '["b", 1]', "[" * 10**5])
def test_forged_values_are_rejected(text):
    with pytest.raises(ValueError, match="not an encoded value"):
        judge.decode(text.encode())

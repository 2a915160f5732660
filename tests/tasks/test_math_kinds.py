"""Kinds of right answers that a grader may miss, and of wrong ones that it may accept, through the task's reward."""

import pytest

from esplug_tasks_math import reward
from tests.helpers.math_kinds import KINDS


@pytest.mark.parametrize(("kind", "given", "gold", "same"), KINDS)
def test_answers_by_kind(kind, given, gold, same) -> None:
    assert reward(rf"so $\boxed{{{given}}}$", gold).correct is same

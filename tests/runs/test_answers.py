"""Training answers that a run records for people: the best and the worst member's to a few prompts."""

import numpy as np
import pytest

from esplug.engines.messages import Completion, Generation
from esplug.hookspecs import Reward
from esplug.rewards import Graded
from esplug.runs.answers import some_answers
from esplug.runs.metrics import PopulationResult


def population(rewards: list[list[float]]) -> PopulationResult:
    graded = [[Graded(Reward(value, f"label {value}")) for value in row] for row in rewards]
    answered = [
        Generation([Completion(f"answer {member} {prompt}", 3, True) for prompt in range(len(row))])
        for member, row in enumerate(rewards)
    ]
    return PopulationResult(np.array(rewards), graded, answered, 1.0, 0.0)


@pytest.mark.parametrize(("prompts", "chosen"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (10, [0, 2, 5, 7])])
def test_prompts_are_spread_over_the_batch(prompts, chosen) -> None:
    result = population([[0.0] * prompts, [1.0] * prompts])
    found = some_answers(result, range(prompts), range(prompts), "prompt {}".format)
    assert [(each.index, each.sample) for each in found] == [(index, member) for index in chosen for member in (1, 0)]
    assert [each.prompt for each in found[::2]] == [f"prompt {index}" for index in chosen]
    assert found[0].output == "answer 1 0"
    assert (found[0].reward, found[0].label, found[1].reward) == (1.0, "label 1.0", 0.0)


def test_equal_rewards_give_one_answer() -> None:
    (only,) = some_answers(population([[0.5], [0.5], [0.5]]), ["q"], ["t"], str)
    assert (only.sample, only.target, only.row()["split"]) == (0, "t", "training")

"""Answers of a training iteration, kept for people to read: the best and the worst member's to a few prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from esplug.evaluation.figures import Sample
from esplug.runs.metrics import PopulationResult

SPLIT = "training"
_PROMPTS = 4


def some_answers(
    result: PopulationResult, questions: Sequence[Any], targets: Sequence[Any], text_of: Callable[[Any], str]
) -> list[Sample]:
    """Return the best and the worst member's answers to prompts that are spread over the batch.

    If all members earned the same for a prompt, there is one answer to it.

    Args:
        result: rewards and answers of N members on B prompts.
        questions, targets: of the B prompts.
        text_of: returns a question's prompt as the model sees it.
    """
    count = min(_PROMPTS, len(questions))
    found = []
    for index in (len(questions) * number // count for number in range(count)):
        rewards = result.rewards[:, index]
        for member in dict.fromkeys((int(rewards.argmax()), int(rewards.argmin()))):
            answer, reward = result.generations[member].completions[index], result.graded[member][index].reward
            about = {"split": SPLIT, "index": index, "sample": member, "passed": bool(reward.correct)}
            prompt, target = text_of(questions[index]), targets[index]
            found.append(Sample.of(answer, reward, **about, prompt=prompt, target=target))
    return found

"""Trial of a reward function: grades made-up answers before a run, and refuses a function that grades none of them.

In a task of several turns, the function that replies is tried in the same way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile
from typing import Any

from esplug.data.conversation import Conversation, answered, opening_messages
from esplug.errors import RunError, UserError
from esplug.hookspecs import Prompt
from esplug.rewards.grades import Graded
from esplug.rewards.pool import RewardPool
from esplug.rewards.replies import OUT_OF_MEMORY
from esplug.utils.text import brief, printable

_SENTENCE = "I think that the answer is 42, but I am not sure."
_FORMS = ("{}", "<answer>{}</answer>", "\\boxed{{{}}}")  # usual formats of an answer
_MOST_TARGETS = 4  # that are tried
_MOST_TEXTS = 5  # of one target
_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_OURS = tuple(f"esplug/rewards/{name}.py" for name in ("grader", "concurrent_grader", "replies", "user_functions"))


def try_reward(pool: RewardPool, targets: Sequence[Any], prompts: Sequence[Prompt] | None = None) -> None:
    """Grade a made-up sentence against the first target; if that fails, more answers against a few targets.

    These are the sentence, an empty answer, and the target's own text. A reward function may fail on odd answers, which
    then count 0.0 in a run. One that fails on all of these would make every reward 0.0.

    Args:
        pool: grades with the reward function.
        targets: of the run, in order; at least one.
        prompts: of the targets, in a task of several turns; ``None`` in others.

    Raises:
        UserError: every answer fails, the reward function raises ``StopRun``, or a target cannot be pickled.
    """

    def grade(number: int, answers: list[str]) -> list[Graded]:
        same = [targets[number]] * len(answers)
        if prompts is None:
            return pool.submit(answers, same).result()
        opening = opening_messages(prompts[number])
        tried = [Conversation(opening, (answered(answer),), "max_turns") for answer in answers]
        return pool.submit(answers, same, tried).result()

    remedy = "it must take (model_output, target) and return a number, also for an answer that earns nothing"
    try:
        _try(grade, targets, pool, f"{pool.name} cannot grade", remedy)
        if prompts is not None:
            _try_turn(pool, targets, prompts)
    except RunError as error:  # nothing has been trained yet, so the user can fix it first
        raise UserError(str(error)) from error


def _try_turn(pool: RewardPool, targets: Sequence[Any], prompts: Sequence[Prompt]) -> None:
    def reply(number: int, answers: list[str]) -> list[Graded]:
        opening = opening_messages(prompts[number])
        return pool.turn(
            [[*opening, answered(answer)] for answer in answers], [targets[number]] * len(answers)
        ).result()

    remedy = "it must take (messages, target) and return a list of messages, or None to end the conversation"
    _try(reply, targets, pool, f"the turn function that goes with {pool.name} cannot reply to", remedy)


def _try(
    ask: Callable[[int, list[str]], list[Graded]], targets: Sequence[Any], pool: RewardPool, cannot: str, remedy: str
) -> None:
    """Ask about made-up answers to the target of a number, until one does not fail. Raise ``UserError`` if all do."""
    (first,) = ask(0, [_SENTENCE])
    if not first.failed:
        return
    slow = first.reward.label == "timeout"
    for number, target in enumerate(targets[:_MOST_TARGETS]):
        answers = [_SENTENCE] if slow else [_SENTENCE, "", *texts_in(target)]
        if not all(graded.failed for graded in ask(number, answers)):
            return
    error = UserError(
        f"{cannot} any of the answers that were tried, such as a plain sentence [{_fault(first)}]; "
        f"{_remedy(first, pool, remedy)}"
    )
    raise error from RuntimeError(first.traceback or "")


def texts_in(target: Any) -> list[str]:
    """Return the first texts and numbers in a target: each bare, between answer tags, and boxed."""
    values = target if isinstance(target, list | tuple) else [target]
    if isinstance(target, Mapping):
        values = list(target.values())
    texts = [str(value) for value in values if isinstance(value, str | int | float) and not isinstance(value, bool)]
    tried = [text for text in texts if text.strip()][:_MOST_TEXTS]
    return [form.format(text) for text in tried for form in _FORMS]


def _fault(grade: Graded) -> str:
    """Return the message of a failure in one line, and where in the user's code it was raised."""
    trace = grade.traceback or grade.reward.label
    last = ([None, *_FRAME.finditer(trace)])[-1]
    after = trace[last.end() :].splitlines()[1:] if last else trace.splitlines()
    fault = printable(brief(" ".join(dropwhile(lambda line: line.startswith("  "), after))))
    if last is None or last["file"].endswith(_OURS):  # the call itself, or a result of a wrong type
        return fault
    # A function of the user's own script has no file in the grading process.
    return f"{fault}, at line {last['line']} of {last['function'] if last['file'].startswith('<') else last['file']}"


def _remedy(grade: Graded, pool: RewardPool, otherwise: str) -> str:
    if grade.reward.label == "timeout":
        return "make it faster, or give it more time with --reward-function-timeout"
    if grade.reward.label == OUT_OF_MEMORY:
        return f"give it more than the {pool.memory} GiB of --reward-memory"
    return otherwise

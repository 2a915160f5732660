"""Reward checks: grade answers that a model may give, such as empty, huge or malformed ones, as a run would."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from esplug.authoring.conformance.checklist import Checklist, Fault
from esplug.config import RunConfig
from esplug.data.conversation import Conversation, answered, opening_messages
from esplug.hookspecs import Prompt, Reward
from esplug.rewards import Graded, RewardPool
from esplug.rewards.trial import texts_in

Gold: TypeAlias = Callable[[Any], str]

_HUGE = 2**20  # characters
_GOLD = "gold answer"
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "empty answer": ("", " \n\t "),
    "garbage": (
        "\x00\x1b[31m\x07\r\x08\x7f",
        "\N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH SPACE}\N{PILE OF POO}e\u0301\N{FULLWIDTH DIGIT ONE}\u00b2",
        "{[(<" * 40 + '"\\boxed{\\frac{1}{{"',
        "1/0 ** 9**9**9 __import__('os').system('exit') nan inf -0 1e999",
        '{"answer": [{"answer": NaN}]}</answer><answer></answer></think>',
    ),
    "huge answer": tuple(
        (text * _HUGE)[:_HUGE] for text in ("word ", "9", "(", "{", '[{"a":', "\n", "<a>", "\\boxed{")
    ),
}


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer to grade against a target. There is a prompt in a task of several turns."""

    kind: str
    text: str
    target: Any
    prompt: Prompt | None

    @property
    def conversation(self) -> Conversation | None:
        """The conversation of one answer, in a task of several turns."""
        if self.prompt is None:
            return None
        return Conversation(opening_messages(self.prompt), (answered(self.text),), "max_turns")


@dataclass(frozen=True, slots=True)
class Functions:
    """A task's functions for grading processes; ``turn`` only in a task of several turns."""

    reward: Callable[..., Any]
    turn: Callable[..., Any] | None


def reward_checks(
    checks: Checklist, functions: Functions, rows: list[tuple[Prompt | None, Any]], config: RunConfig, gold: Gold | None
) -> None:
    """Grade every answer against each of a few targets, twice, in grading processes; reply to each if there are turns.

    ``rows`` are targets, with prompts if there are turns. Without ``gold``, the texts in a target are tried: bare,
    between answer tags, and boxed.
    """
    pool = RewardPool(
        functions.reward,
        timeout=config.reward_function_timeout,
        memory=config.reward_memory,
        concurrency=config.reward_concurrency,
        turn_function=functions.turn,
    )
    if checks.run("reward in its own process", partial(_started, pool)) is None:
        return
    answers = {
        kind: [_Answer(kind, text, target, prompt) for text in texts for prompt, target in rows]
        for kind, texts in ANSWERS.items()
    }
    gold_texts = texts_in if gold is None else lambda target: [gold(target)]
    answers[_GOLD] = [_Answer(_GOLD, text, target, prompt) for prompt, target in rows for text in gold_texts(target)]
    grades: dict[str, list[Graded]] = {kind: [] for kind in answers}
    with closing(pool):
        if functions.turn:
            for kind in answers:
                checks.run(f"turn after {kind}", partial(_replied, pool, answers[kind]))
        for kind in ANSWERS:
            checks.run(f"reward of {kind}", partial(_graded, pool, answers[kind], grades[kind], _all_graded))
        empty = max((grade.reward.value for grade in grades["empty answer"]), default=0.0)
        judge = partial(_best_of if gold is None else _all_right, empty=empty)
        checks.run(f"reward of {_GOLD}", partial(_graded, pool, answers[_GOLD], grades[_GOLD], judge))
        every_answer, every_grade = (list(chain(*each.values())) for each in (answers, grades))
        checks.run("reward repeats", partial(_repeated, pool, every_answer, every_grade))


def _started(pool: RewardPool) -> tuple[bool, str]:
    pool.start()
    return True, f"loads there; grading one answer may take {pool.timeout:g} s"


def _graded(
    pool: RewardPool, answers: list[_Answer], grades: list[Graded], judge: Callable[[list[Graded]], tuple[bool, str]]
) -> tuple[bool, str]:
    """Grade answers of one kind up to the first time-out, append the grades to ``grades``, and judge them."""
    for answer in answers:
        grades += pool.submit([answer.text], [answer.target], [answer.conversation]).result()
        if grades[-1].failed and grades[-1].reward.label == "timeout":
            break
    return judge(grades)


def _replied(pool: RewardPool, answers: list[_Answer]) -> tuple[bool, str]:
    """Reply to answers of one kind, twice."""
    conversations = [each.conversation for each in answers if each.conversation]
    asked = [each.messages for each in conversations], [answer.target for answer in answers]
    first, second = pool.turn(*asked).result(), pool.turn(*asked).result()
    for one, other in zip(first, second, strict=True):
        if one.failed:
            trace = one.traceback or ""
            *_, why = ["", *trace.splitlines()]
            raise Fault(f"{one.reward.label} [{why}]; a run would end that conversation with reward 0.0")
        if one.reply != other.reply:
            raise Fault("the same conversation gets one reply the first time, and then another")
    ends = sum(one.reply is None for one in first)
    slowest = max((one.seconds for one in first), default=0.0)
    return True, f"{len(first) - ends} replies, {ends} ends; the same when asked again; {slowest:.2g} s at most"


def _all_graded(grades: list[Graded]) -> tuple[bool, str]:
    for grade in grades:
        if grade.failed:
            trace = grade.traceback or ""
            *_, why = ["", *trace.splitlines()]
            raise Fault(f"{grade.reward.label} [{why}]; a run would count it as reward 0.0") from RuntimeError(trace)
    return True, f"{_span([grade.reward for grade in grades])}; {max(grade.seconds for grade in grades):.2g} s at most"


def _all_right(grades: list[Graded], empty: float) -> tuple[bool, str]:
    """Check that answers known to be right earn more than an empty one."""
    result = _all_graded(grades)
    for grade in grades:
        if grade.reward.value <= empty or grade.reward.correct is False:
            raise Fault(f"one earns {_span([grade.reward])}, an empty answer {empty:g}")
    return result


def _best_of(grades: list[Graded], empty: float) -> tuple[bool, str]:
    """Report the best reward of answers that may not be in the format that the task expects."""
    if not grades:
        return True, "not tried: the targets contain no text; pass gold= to esplug.testing.check_task"
    _all_graded(grades)
    best = max((grade.reward for grade in grades), key=lambda reward: reward.value)
    return True, f"the target's text, bare, tagged or boxed, earns up to {_span([best])}, an empty answer {empty:g}"


def _repeated(pool: RewardPool, answers: list[_Answer], first: list[Graded]) -> tuple[bool, str]:
    if len(first) < len(answers) or any(grade.failed for grade in first):
        return True, "not tried: some answers could not be graded once"
    texts, targets = [answer.text for answer in answers], [answer.target for answer in answers]
    second = pool.submit(texts, targets, [answer.conversation for answer in answers]).result()
    for answer, one, other in zip(answers, first, second, strict=True):
        if _earned(one) != _earned(other):
            raise Fault(f"{answer.kind}: {_span([one.reward])} the first time, then {_span([other.reward])}")
    return True, "the same for the same answer"


def _earned(grade: Graded) -> tuple[float, str, bool | None]:
    """Return what an answer earned, without metrics, which may be measurements such as the time taken."""
    return grade.reward.value, grade.reward.label, grade.reward.correct


def _span(rewards: Iterable[Reward]) -> str:
    rewards = list(rewards)
    lowest, highest = (of(reward.value for reward in rewards) for of in (min, max))
    labels = ", ".join(sorted({reward.label for reward in rewards if reward.label}))
    return (f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}") + (f" ({labels})" if labels else "")

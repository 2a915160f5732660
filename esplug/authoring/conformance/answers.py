"""The checks of a task's rewards: answers that some model will give one day, graded as in a run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from esplug.authoring.conformance.checklist import Checklist, Fault
from esplug.hookspecs import Reward
from esplug.rewards import Graded, RewardPool

Gold: TypeAlias = Callable[[Any], str]

_HUGE = 2**20  # characters
_MOST_TEXTS = 5  # of one target that are tried as its gold answer
_GOLD = "gold answer"
_FORMS = ("{}", "<answer>{}</answer>", "\\boxed{{{}}}")  # in which tasks like to find an answer
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
class _Asked:
    """An answer to be graded."""

    kind: str
    text: str
    target: Any


def reward_checks(
    checks: Checklist,
    reward: Callable[[str, Any], Any],
    targets: list[Any],
    *,
    timeout: float,
    memory: float,
    gold: Gold | None,
) -> None:
    """Grade every answer against each of a few targets, twice, in processes of their own.

    Args:
        checks: where the results go.
        reward: the reward function; picklable.
        targets: the few.
        timeout: seconds that grading one answer may take.
        memory: GiB that one grading process may take.
        gold: makes of a target an answer that is right. Without it, the texts that a target holds are tried, bare,
            between answer tags and boxed.
    """
    pool = RewardPool(reward, timeout=timeout, memory=memory)
    if checks.run("reward in its own process", partial(_started, pool)) is None:
        return
    asked = {
        kind: [_Asked(kind, text, target) for text in texts for target in targets] for kind, texts in ANSWERS.items()
    }
    asked[_GOLD] = [_Asked(_GOLD, text, target) for target in targets for text in _gold_texts(target, gold)]
    grades: dict[str, list[Graded]] = {kind: [] for kind in asked}
    with closing(pool):
        for kind in ANSWERS:
            checks.run(f"reward of {kind}", partial(_judged, pool, asked[kind], grades[kind], _all_graded))
        empty = max((grade.reward.value for grade in grades["empty answer"]), default=0.0)
        judge = partial(_best_of if gold is None else _all_right, empty=empty)
        checks.run(f"reward of {_GOLD}", partial(_judged, pool, asked[_GOLD], grades[_GOLD], judge))
        checks.run(
            "reward repeats", partial(_repeated, pool, *(list(chain(*each.values())) for each in (asked, grades)))
        )


def _started(pool: RewardPool) -> tuple[bool, str]:
    pool.start()
    return True, f"loads there; grading one answer may take {pool.timeout:g} s"


def _judged(
    pool: RewardPool, asked: list[_Asked], grades: list[Graded], judge: Callable[[list[Graded]], tuple[bool, str]]
) -> tuple[bool, str]:
    """Grade answers of one kind, into ``grades``, as far as the first that takes too long; then judge the grades."""
    for each in asked:
        grades += pool.submit([each.text], [each.target]).result()
        if grades[-1].failed and grades[-1].reward.label == "timeout":
            break
    return judge(grades)


def _all_graded(grades: list[Graded]) -> tuple[bool, str]:
    for grade in grades:
        if grade.failed:
            trace = grade.traceback or ""
            *_, why = ["", *trace.splitlines()]
            fault = f"{grade.reward.label} [{why}]; a run would count it 0.0 and go on"
            raise Fault(fault) from RuntimeError(trace)
    return True, f"{_span([grade.reward for grade in grades])}; {max(grade.seconds for grade in grades):.2g} s at most"


def _all_right(grades: list[Graded], empty: float) -> tuple[bool, str]:
    """Judge answers that are known to be right."""
    found = _all_graded(grades)
    for grade in grades:
        if grade.reward.value <= empty or grade.reward.correct is False:
            raise Fault(f"one earns {_span([grade.reward])}, an empty answer {empty:g}")
    return found


def _best_of(grades: list[Graded], empty: float) -> tuple[bool, str]:
    """Report what answers earn of which nobody knows whether they are in the form that the task wants."""
    if not grades:
        return True, "not tried: the targets hold no text (gold= of esplug.testing.check_task makes one)"
    _all_graded(grades)
    best = max((grade.reward for grade in grades), key=lambda reward: reward.value)
    return True, f"the target's text, bare, tagged or boxed, earns up to {_span([best])}, an empty answer {empty:g}"


def _repeated(pool: RewardPool, asked: list[_Asked], first: list[Graded]) -> tuple[bool, str]:
    if len(first) < len(asked) or any(grade.failed for grade in first):
        return True, "not tried: there are answers that could not be graded once"
    second = pool.submit([each.text for each in asked], [each.target for each in asked]).result()
    for each, one, other in zip(asked, first, second, strict=True):
        if one.reward != other.reward:
            raise Fault(f"{each.kind}: {_span([one.reward])} the first time, then {_span([other.reward])}")
    return True, "the same for the same answer"


def _span(rewards: Iterable[Reward]) -> str:
    rewards = list(rewards)
    lowest, highest = (of(reward.value for reward in rewards) for of in (min, max))
    labels = ", ".join(sorted({reward.label for reward in rewards if reward.label}))
    return (f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}") + (f" ({labels})" if labels else "")


def _gold_texts(target: Any, gold: Gold | None) -> list[str]:
    if gold is not None:
        return [gold(target)]
    texts = [text for text in _texts_in(target) if text.strip()][:_MOST_TEXTS]
    return [form.format(text) for text in texts for form in _FORMS]


def _texts_in(target: Any) -> Iterator[str]:
    """Find what could be an answer: the target, or what it holds one level below."""
    values = (
        target.values() if isinstance(target, Mapping) else target if isinstance(target, list | tuple) else [target]
    )
    for value in values:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            yield str(value)

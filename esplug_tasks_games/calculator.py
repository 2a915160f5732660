"""Task `calculator`: answer an arithmetic question with the help of a calculator.

The model writes ``<calc>37*48</calc>`` to use it, gets ``<result>1776</result>``, and ends with
``<answer>1776</answer>``.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from random import Random
from typing import Any

from esplug import Reward, hookimpl
from esplug_tasks_games import arithmetic

_CALL = re.compile(r"<calc>(.{0,2000}?)</calc>\s*$", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.{0,80}?)</answer>", re.DOTALL)
_INSTRUCTION = (
    "{question} You have a calculator: to use it, write <calc>an expression</calc>, such as <calc>12*7</calc>, and "
    "wait for its result. Then write the number alone between <answer> and </answer>."
)
#: Solved questions for base models and small ones: expressions that the rows do not have.
EXAMPLES = ("38*41", "706-48*9", "(95+27)*33", "912/16")


@hookimpl
def options() -> Mapping[str, Any]:
    """Declare the options. ``shots``: solved examples, 0 to 4; with 0, the prompt is a chat message."""
    return {"shots": 0}


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Stop where the calculator or the grader has its turn."""
    _shots(options)
    return {"max_turns": 4, "max_tokens": 64, "stop": ["</calc>", "</answer>"]}


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Make questions; a hash decides which are held out."""
    if path is not None:
        return None
    rng = Random(1623)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < 4000:
        a, b, c = rng.randrange(11, 1000), rng.randrange(11, 100), rng.randrange(2, 100)
        expression = rng.choice((f"{a}*{b}", f"{a}+{b}*{c}", f"{a}-{b}*{c}", f"({a}+{b})*{c}", f"{a * b}/{b}"))
        if expression not in EXAMPLES:
            answer = arithmetic.shown(arithmetic.evaluate(expression))
            rows[expression] = {"question": f"What is {expression}?", "answer": answer}
    held_out = [row for row in rows.values() if zlib.crc32(row["question"].encode()) % 4 == 0]
    return {"held_out": held_out[:200]} if split == "eval" else [row for row in rows.values() if row not in held_out]


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Take questions, and answers that are numbers."""
    answers = [str(row["answer"]) for row in batch]
    for answer in answers:
        _number(answer)
    return [str(row["question"]) for row in batch], answers


@hookimpl
def template(question: str, options: Mapping[str, Any]) -> str | list[dict[str, str]]:
    """Return a chat message with the rules, or solved examples as text."""
    if not _shots(options):
        return [{"role": "user", "content": _INSTRUCTION.format(question=question)}]
    return "".join(_solved(expression) for expression in EXAMPLES[: _shots(options)]) + f"Question: {question}\n"


@hookimpl
def turn(messages: list[dict[str, str]]) -> list[dict[str, str]] | None:
    """Return the calculator's result if the answer ends with a call; end the conversation otherwise."""
    call = _CALL.search(messages[-1]["content"][-2100:])
    if call is None or "<answer>" in messages[-1]["content"]:
        return None
    try:
        result = arithmetic.shown(arithmetic.evaluate(call[1]))
    except ValueError as error:
        result = f"error: {error}"
    return [{"role": "user", "content": f"\n<result>{result}</result>\n"}]


@hookimpl
def reward(model_output: str, target: str, messages: list[dict[str, str]]) -> Reward:
    """Give 1 for the right number, 0.2 for another one in the right form, and 0.1 for a call without an answer."""
    calls = sum("<result>" in message["content"] for message in messages[1:] if message["role"] == "user")
    answers = _ANSWER.findall(model_output[-10_000:])
    metrics = {"calls": calls}
    if not answers:
        return Reward(0.1 if calls else 0.0, "no_answer", False, metrics)
    try:
        right = _number(answers[-1]) == _number(target)
    except ValueError:
        return Reward(0.1 if calls else 0.0, "not_a_number", False, metrics)
    return Reward(1.0 if right else 0.2, "correct" if right else "wrong", right, metrics)


def _solved(expression: str) -> str:
    result = arithmetic.shown(arithmetic.evaluate(expression))
    steps = f"<calc>{expression}</calc>\n<result>{result}</result>\n<answer>{result}</answer>"
    return f"Question: What is {expression}?\n{steps}\n\n"


def _number(text: str) -> Fraction:
    """Return the value of a number, which may have a sign and commas between thousands."""
    if not re.fullmatch(r"[-+]?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]+)?|[-+]?[0-9]{1,20}(\.[0-9]{1,20})?", text.strip()):
        raise ValueError(f"column 'answer': {text[:60]!r} is not a number")
    return Fraction(text.replace(",", "").strip())


def _shots(options: Mapping[str, Any]) -> int:
    shots: int = options["shots"]
    if not 0 <= shots <= len(EXAMPLES):
        raise ValueError(f"shots must be between 0 and {len(EXAMPLES)}, not {shots}")
    return shots

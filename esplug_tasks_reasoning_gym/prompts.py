"""Prompts: the generator's question, and how to give the answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from esplug.hookspecs import Prompt
from esplug_tasks_reasoning_gym.answers import PLACES

_INSTRUCTIONS = {
    "tags": "Give your final answer, and nothing else, between <answer> and </answer>.",
    "boxed": "Put your final answer, and nothing else, in \\boxed{}.",
    "last-line": "Write your final answer, and nothing else, in the last line.",
}
_FORMS = {"tags": "<answer>{}</answer>", "boxed": "\\boxed{{{}}}", "last-line": "{}"}
_TEMPLATES = ("chat", "plain")


def check(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if there is no such template or place of the answer."""
    for name, known in (("answer_from", PLACES), ("template", _TEMPLATES)):
        if options[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {options[name]!r}")


def ask(question: str, examples: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> Prompt:
    """Return chat messages, or text for a base model, which ends where the model's answer begins.

    Args:
        question: of the generator.
        examples: questions and right answers, which come first, in the same form.
        options: of the task.
    """
    instruction = options["instruction"] or _INSTRUCTIONS[options["answer_from"]]
    asked = [f"{each.strip()}\n\n{instruction}" for each in [*(example for example, _ in examples), question]]
    answered = [_FORMS[options["answer_from"]].format(answer.strip()) for _, answer in examples]
    if options["template"] == "plain":
        return (
            "".join(f"{one}\n\n{answer}\n\n" for one, answer in zip(asked, [*answered, ""], strict=True)).rstrip()
            + "\n\n"
        )
    messages = [{"role": "user", "content": asked[0]}]
    for answer, following in zip(answered, asked[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": following}]
    return messages

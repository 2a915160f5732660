"""Prompts: the generator's question, and how to give the answer."""

from collections.abc import Mapping
from typing import Any

from esplug.hookspecs import Prompt
from esplug_tasks_reasoning_gym.answers import PLACES

_INSTRUCTIONS = {
    "tags": "Give your final answer, and nothing else, between <answer> and </answer>.",
    "boxed": "Put your final answer, and nothing else, in \\boxed{}.",
    "last-line": "Write your final answer, and nothing else, in the last line.",
}
_TEMPLATES = ("chat", "plain")


def check(options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if there is no such template or place of the answer."""
    for name, known in (("answer_from", PLACES), ("template", _TEMPLATES)):
        if options[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {options[name]!r}")


def ask(question: str, options: Mapping[str, Any]) -> Prompt:
    """Return a chat message, or text for a base model, which ends where the model's answer begins."""
    text = f"{question.strip()}\n\n{options['instruction'] or _INSTRUCTIONS[options['answer_from']]}"
    return [{"role": "user", "content": text}] if options["template"] == "chat" else f"{text}\n\n"

r"""Prompt templates that ask for an answer in ``\boxed{}``."""

import re
from collections.abc import Callable, Mapping

from esplug.hookspecs import Prompt
from esplug_tasks_math.shots import EXAMPLES

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."

_R1 = (
    "A problem is given below. First think it through between <think> and </think>. Then give the solution "
    r"between <answer> and </answer>, with the final answer in \boxed{}." + "\n\n"
    "Problem: {problem}\n\nSolution: <think>"
)
# Control tokens that start or end a turn in ChatML.
_CONTROL = re.compile(r"<\|(?=[A-Za-z_]{1,40}\|>)")


def chat(problem: str, shots: int = 0) -> list[dict[str, str]]:
    """Return chat messages with ``shots`` worked examples, for the model's own chat template."""
    messages = [{"role": "system", "content": INSTRUCTION}]
    for example, solution in EXAMPLES[:shots]:
        messages += [{"role": "user", "content": example}, {"role": "assistant", "content": solution}]
    return [*messages, {"role": "user", "content": harmless(problem)}]


def qwen(problem: str, shots: int = 0) -> str:
    """Return Qwen's mathematics prompt as text, which also suits base models without a chat template."""
    turns = (f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in chat(problem, shots))
    return "".join(turns) + "<|im_start|>assistant\n"


def r1(problem: str) -> str:
    """Return plain text for base models, ending with an open ``<think>``."""
    return _R1.replace("{problem}", problem)


def harmless(problem: str) -> str:
    """Insert a space into control tokens such as ``<|im_end|>``, so that a problem cannot end its own turn."""
    return _CONTROL.sub("< |", problem)


TEMPLATES: Mapping[str, Callable[..., Prompt]] = {"qwen": qwen, "chat": chat, "r1": r1, "none": str}


def check(template: str, shots: int) -> None:
    """Check the options.

    Raises:
        ValueError: the template does not exist, or does not take so many worked examples.
    """
    if template not in TEMPLATES:
        raise ValueError(f"template must be one of {', '.join(TEMPLATES)}, not {template!r}")
    if not 0 <= shots <= len(EXAMPLES):
        raise ValueError(f"shots must be between 0 and {len(EXAMPLES)}, not {shots}")
    if shots and template not in ("qwen", "chat"):
        raise ValueError(f"shots are turns of a chat, for the templates qwen and chat, not {template!r}")


def ask(problem: str, template: str, shots: int) -> Prompt:
    """Return the prompt for a problem, in the named template."""
    return TEMPLATES[template](problem, shots) if shots else TEMPLATES[template](problem)

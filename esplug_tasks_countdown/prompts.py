"""Countdown prompts: a zero-shot prompt, and a compact few-shot prompt for base models."""

from collections.abc import Sequence
from typing import Any

#: Worked examples (numbers, target, solution), which the generator excludes from every split. The order matters most
#: with one shot: see README.md for measurements.
EXAMPLES: tuple[tuple[tuple[int, ...], int, str], ...] = (
    ((4, 11, 9), 24, "4 + 11 + 9"),
    ((27, 14, 6), 19, "27 - 14 + 6"),
    ((19, 8, 5), 22, "19 + 8 - 5"),
    ((30, 12, 7), 11, "30 - 12 - 7"),
    ((16, 3, 10), 9, "16 + 3 - 10"),
    ((25, 21, 13), 17, "25 - 21 + 13"),
    ((28, 2, 17), 9, "28 - 2 - 17"),
    ((6, 15, 20), 41, "6 + 15 + 20"),
)


def zero_shot(numbers: Sequence[int], target: Any) -> str:
    """Return the full instruction, ending with an opening ``<think>`` that the model continues."""
    return (
        f"Here are {len(numbers)} numbers: {_listed(numbers)}. Write an arithmetic expression whose value is "
        f"{target}. Every one of the numbers must appear exactly once and no other number may appear; "
        "the operations are +, -, * and /, and parentheses are welcome.\n"
        "Work it out between <think> and </think>. Then, on the next line, put the bare expression, "
        "with no equals sign, between <answer> and </answer>.\n"
        "<think>"
    )


def few_shot(shots: int, numbers: Sequence[int], target: Any) -> str:
    """Return ``shots`` solved puzzles and an unsolved one in compact form, ending with ``<think>``."""
    solved = (
        f"{_compact(nums, goal)}{solution}</think>\n<answer>{solution}</answer>\n\n"
        for nums, goal, solution in EXAMPLES[:shots]
    )
    return "".join(solved) + _compact(numbers, target)


def _compact(numbers: Sequence[int], target: Any) -> str:
    return f"Numbers: {_listed(numbers)}. Target: {target}.\n<think>"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))

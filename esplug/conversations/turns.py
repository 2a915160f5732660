"""Settings of conversations: how many turns they have, and what refuses them."""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from struct import pack
from typing import Any

from esplug.config import RunConfig
from esplug.errors import UserError

DEFAULT_MAX_TURNS = 8


def max_turns(config: RunConfig, turn_function: Callable[..., Any] | None) -> int:
    """Return the largest number of answers in a conversation; 1 without a hook ``turn``.

    Raises:
        UserError: the settings do not go with the task.
    """
    if turn_function is None:
        if config.max_turns is not None:
            raise UserError(
                f"--max-turns {config.max_turns}: task {config.task!r} has no hook `turn`, so a conversation is one "
                "answer; leave it out"
            )
        return 1
    if not callable(turn_function):
        raise UserError(f"turn_function is not callable ({type(turn_function).__name__}): give (messages, target)")
    if config.low_rank:
        raise UserError(
            f"--perturbation low-rank: not for tasks with several turns such as {config.task!r}, in which each member "
            "has other prompts; choose --perturbation full"
        )
    return config.max_turns or DEFAULT_MAX_TURNS


def turn_seeds(seeds: Sequence[int], turn: int) -> list[int]:
    """Return the sampling seeds of a turn, counted from 0, from those of the first. They are below 2**63."""
    if turn == 0:
        return list(seeds)
    return [int.from_bytes(blake2b(pack("<QQ", seed, turn), digest_size=8).digest()) >> 1 for seed in seeds]

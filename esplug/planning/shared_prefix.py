"""Prompts that begin alike: whether it pays to have vLLM compute that beginning once for all of them."""

from collections.abc import Sequence
from itertools import takewhile

#: Shortest beginning, in tokens, that can be shared: one block of the CPU backend.
MIN_PREFIX_TOKENS = 32
#: While vLLM notes down one token for sharing, 0.3 to 0.9 microseconds, an H100 computes one of a prompt for a model of
#: so many weights: two operations a weight, 5e14 a second.
_WEIGHTS = 2e8


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that several prompts begin with; none where they are too few to be shared."""
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    beginning = [column[0] for column in alike] if len(prompts) > 1 else []
    return beginning if len(beginning) >= MIN_PREFIX_TOKENS else []


def sharing_saves_time(prompts: Sequence[Sequence[int]], most_tokens: int, weights: int) -> bool:
    """Return whether a GPU saves more by sharing than vLLM's bookkeeping costs, which is for every token.

    Args:
        prompts: as token ids, answered together.
        most_tokens: of an answer.
        weights: how many the model has.
    """
    return len(common_prefix(prompts)) * weights > _WEIGHTS * (max(map(len, prompts)) + most_tokens)

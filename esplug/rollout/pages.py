"""Pages of the KV cache: an answer reserves all that its longest length needs, and prompts share their beginning's."""

from collections.abc import Sequence

import numpy as np

from esplug.rollout.requests import Request


class Pages:
    """Free pages, ``first`` to ``count - 1``."""

    def __init__(self, first: int, count: int, size: int) -> None:
        self.size = size
        self._next, self._count = first, count  # pages from ``_next`` on have not been taken yet
        self._returned: list[int] = []

    def needed(self, positions: int) -> int:
        """Return the number of pages for so many positions."""
        return -(-positions // self.size)

    def room_for(self, pages: int) -> bool:
        """Whether so many pages are free."""
        return pages <= len(self._returned) + self._count - self._next

    def take(self, count: int) -> list[int]:
        """Take free pages, for which there must be room."""
        again = min(count, len(self._returned))
        first = self._next
        self._next += count - again
        taken = [*self._returned[len(self._returned) - again :], *range(first, self._next)]
        del self._returned[len(self._returned) - again :]
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        """Make pages free again."""
        self._returned += pages


def shared_positions(requests: Sequence[Request], page_size: int) -> int:
    """Return how many positions all prompts share at their beginning: whole pages, without any prompt's last token."""
    if len(requests) < 2:
        return 0
    shortest = min(len(each.prompt) for each in requests) - 1
    first = np.asarray(requests[0].prompt[:shortest])
    same = np.ones(len(first), dtype=bool)
    for each in requests[1:]:
        same &= first == np.asarray(each.prompt[:shortest])
    count = int(same.argmin()) if not same.all() else len(first)
    return count // page_size * page_size

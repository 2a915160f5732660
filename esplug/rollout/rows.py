"""Rows: the state of the answers that are decoded at once. It lives on the device, and each step advances it there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esplug.rollout.requests import Sampler
from esplug.rollout.sampling import choose

#: Steps between two looks at the answers. The tokens of so many steps are kept on the device.
LOOK_EVERY = 4


@dataclass(frozen=True, slots=True)
class NewRow:
    """An answer to start: ``token`` is the last of its prompt, whose other tokens are in the KV cache.

    Attributes:
        position: of ``token``.
        last: position of the last token from which another may follow.
        pages: of the KV cache, for all positions up to ``last``.
        adapter: slot of the low-rank member that answers, from 1 on; 0 without one.
    """

    token: int
    position: int
    last: int
    pages: Sequence[int]
    adapter: int = 0


class Rows:
    """State of up to ``most`` answers. Tensors keep their addresses, so that CUDA graphs can read and write them.

    A row that has ended stays as it is: its step computes the same token's keys and values again. Unused rows hold a
    token in the KV cache's first page, which vLLM never uses.

    Args:
        most: rows.
        page_size: positions in one page of the KV cache.
        longest: positions that one answer can have, with its prompt.
        vocabulary: number of logits.
        slots: adapter slots.
    """

    def __init__(
        self, most: int, page_size: int, longest: int, vocabulary: int, slots: int, device: torch.device
    ) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.most, self.page_size, self.device = most, page_size, device
        self.token = zeros(most, dtype=torch.int32)
        self.position = zeros(most, dtype=torch.int64)
        self.last = zeros(most, dtype=torch.int64)
        self.length = zeros(most, dtype=torch.int32)  # position + 1, as attention reads it
        self.place = zeros(most, dtype=torch.int64)  # of the position in the KV cache
        self.active = zeros(most, dtype=torch.bool)
        self.adapter = zeros(most, dtype=torch.int64)
        self.table = zeros(most, -(-longest // page_size), dtype=torch.int32)  # pages
        self._state = (
            self.token,
            self.position,
            self.last,
            self.length,
            self.place,
            self.active,
            self.adapter,
            self.table,
        )
        self.starts = torch.arange(most + 1, dtype=torch.int32, device=device)  # each row is a sequence of one token
        self.starts_on_host = torch.arange(most + 1, dtype=torch.int32)
        self.recent = zeros(
            most, LOOK_EVERY, dtype=torch.int32
        )  # tokens, by the position before them modulo LOOK_EVERY
        self.uniforms = torch.zeros(most, LOOK_EVERY, dtype=torch.float32, device=device)  # for sampling, likewise
        self.ends = zeros(vocabulary, dtype=torch.bool)  # tokens that end an answer
        self.undefined = zeros(1 + slots, dtype=torch.int64)  # tokens with undefined logits, by adapter

    def rearrange(self, kept: Sequence[int], new: Sequence[NewRow], size: int) -> None:
        """Make the first ``size`` rows these: rows that are ``kept``, then ``new`` ones, then unused ones."""
        count, end = len(kept), len(kept) + len(new)
        if list(kept) != list(range(count)):
            order = torch.tensor(kept, dtype=torch.int64).to(self.device)
            for tensor in self._state:
                tensor[:count] = tensor[order]
        for tensor in self._state:
            tensor[end:size] = 0
        self.length[end:size] = 1
        if new:
            self._write(slice(count, end), new)

    def _write(self, where: slice, new: Sequence[NewRow]) -> None:
        pages = np.zeros((len(new), self.table.shape[1]), dtype=np.int32)
        for row, each in zip(pages, new, strict=True):
            row[: len(each.pages)] = each.pages
        numbers = np.array([[each.token, each.position, each.last, each.adapter] for each in new], dtype=np.int64)
        on_page = numbers[:, 1] // self.page_size
        place = pages[np.arange(len(new)), on_page].astype(np.int64) * self.page_size + numbers[:, 1] % self.page_size
        values = torch.from_numpy(np.column_stack([numbers, place])).to(self.device)
        self.token[where], self.position[where], self.last[where] = values[:, 0], values[:, 1], values[:, 2]
        self.adapter[where], self.place[where] = values[:, 3], values[:, 4]
        self.length[where] = values[:, 1] + 1
        self.active[where] = True
        self.table[where] = torch.from_numpy(pages).to(self.device)

    def advance(self, size: int, logits: torch.Tensor, sampler: Sampler) -> None:
        """Choose the next token of the first ``size`` rows from ``logits`` [size, vocabulary], and go on to it."""
        if sampler.greedy and logits.is_cuda:
            from esplug.rollout.step_kernel import advance_greedily

            advance_greedily(logits[:size], *self._state, self.recent, self.ends, self.undefined, self.page_size)
            return
        position, active, recent = self.position[:size], self.active[:size], self.recent[:size]
        column = (position % LOOK_EVERY)[:, None]
        token, top = choose(logits, sampler, self.uniforms[:size].gather(1, column))
        self.undefined.index_add_(0, self.adapter[:size], (active & ~torch.isfinite(top)).to(torch.int64))
        recent.scatter_(
            1, column, torch.where(active[:, None], token[:, None].to(torch.int32), recent.gather(1, column))
        )
        going = active & ~self.ends[token] & (position < self.last[:size])
        active.copy_(going)
        self.token[:size].copy_(torch.where(going, token.to(torch.int32), self.token[:size]))
        position.add_(going)
        self.length[:size].add_(going)
        page = self.table[:size].gather(1, (position // self.page_size)[:, None]).squeeze(1)
        self.place[:size].copy_(page.to(torch.int64) * self.page_size + position % self.page_size)

"""The rollout loop: admits requests as the KV cache has room, decodes them, and drops answers that have ended."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from esplug.rollout.answers import Answers, Look
from esplug.rollout.decoding import Decoder, batch_size
from esplug.rollout.model import PagedModel
from esplug.rollout.pages import Pages, shared_positions
from esplug.rollout.prefill import Stretch, prefill
from esplug.rollout.requests import Answer, Request, Rules
from esplug.rollout.rows import LOOK_EVERY, NewRow, Rows

_SHRINK = 0.9  # part of the batch that is left when it is made smaller, so that few sizes occur
_REFILL = 8  # requests wait until one can follow so many rows, so that prompts are computed in large batches


@dataclass(frozen=True, slots=True)
class _Launched:
    """A look whose tokens are on their way to the host."""

    look: Look
    recent: torch.Tensor
    arrived: Any  # a CUDA event; None on a CPU


class Rollout:
    """Answers requests with vLLM's model. vLLM must not be answering, and must have no cached prefixes.

    Args:
        beat: called whenever the loop makes progress.
    """

    def __init__(self, model: PagedModel, beat: Callable[[], None]) -> None:
        self._model, self._beat = model, beat
        self._rows = Rows(model.most_rows, model.page_size, model.longest, model.vocabulary, model.slots, model.device)
        self._decoder = Decoder(model, self._rows, model.graphs)
        with torch.inference_mode():
            self._decoder.prepare(model.most_rows)
        pinned = model.device.type == "cuda"
        shape = 2, model.most_rows, LOOK_EVERY  # one look arrives while the next is launched
        self._arrivals = torch.zeros(shape, dtype=torch.int32, pin_memory=pinned)
        self._departures = torch.zeros(shape, dtype=torch.float32, pin_memory=pinned)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], rules: Rules) -> tuple[list[Answer], list[int]]:
        """Return the answers, and the number of tokens with undefined logits for each adapter slot, from 0 on."""
        model, rows = self._model, self._rows
        answers = Answers(requests, rules, model.longest, model.vocabulary)
        rows.undefined.zero_()
        rows.ends.copy_(torch.from_numpy(answers.ends))
        batch = _Batch(model, rows, requests, answers)
        before: _Launched | None = None
        turn = 0
        while True:
            batch.arrange()
            launched = self._launch(batch, answers, rules, turn)
            if before is not None:
                self._receive(before, answers)
            elif launched is None:
                break
            before, turn = launched, 1 - turn
            self._beat()
        return answers.results(), rows.undefined.tolist()

    def _launch(self, batch: "_Batch", answers: Answers, rules: Rules, turn: int) -> _Launched | None:
        """Launch the steps up to the next look."""
        look = answers.launch(batch.answers, LOOK_EVERY)
        if look is None:
            return None
        count = len(look.answers)
        uniforms = answers.uniforms(look)
        if uniforms is not None:
            self._departures[turn, :count] = torch.from_numpy(uniforms)
            self._rows.uniforms[:count].copy_(self._departures[turn, :count], non_blocking=True)
        self._decoder.steps(look.steps, batch.size, batch.longest, rules.sampler)
        recent = self._arrivals[turn, :count]
        recent.copy_(self._rows.recent[:count], non_blocking=True)
        arrived = None
        if recent.is_pinned():
            arrived = torch.cuda.current_stream().record_event()
        return _Launched(look, recent, arrived)

    def _receive(self, launched: _Launched, answers: Answers) -> None:
        if launched.arrived is not None:
            launched.arrived.synchronize()
        answers.receive(launched.look, launched.recent.numpy())


class _Batch:
    """Which answer is in which row, and which requests wait."""

    def __init__(self, model: PagedModel, rows: Rows, requests: Sequence[Request], answers: Answers) -> None:
        self._model, self._rows, self._requests, self._state = model, rows, requests, answers
        self._pages = Pages(model.first_page, model.n_pages, model.page_size)
        self._held: dict[int, list[int]] = {}  # pages of each answer's own
        self._waiting = deque(range(len(requests)))
        self.answers = np.zeros(0, dtype=np.int64)  # in each row
        self.size = 0
        self.longest = 0
        self._shared = 0  # positions of all prompts that are computed once for each adapter
        self._prefixes: dict[int, list[int]] = {}
        self._share(shared_positions(requests, model.page_size))

    def _share(self, positions: int) -> None:
        """Compute the beginning of all prompts once for each adapter, if there is room beside the longest answer."""
        slots = sorted({each.adapter for each in self._requests})
        each, longest = positions // self._pages.size, max(map(self._needed, self._waiting), default=0)
        if positions and self._pages.room_for(len(slots) * each + longest - each):
            self._shared = positions
            self._prefixes = {slot: self._pages.take(each) for slot in slots}
            prompt = self._requests[0].prompt[:positions]
            prefill(self._model, [Stretch(prompt, 0, pages, slot) for slot, pages in self._prefixes.items()])

    def arrange(self) -> None:
        """Drop rows of answers that have ended, and admit waiting requests, if either pays."""
        done = self._state.done[self.answers]
        for ended in self.answers[done].tolist():  # the next admission drops their rows
            self._pages.give_back(self._held.pop(ended, []))
        live, most = np.flatnonzero(~done), self._model.most_rows
        new = self._admit(most - len(live), at_least=max(1, len(live) // _REFILL))
        if self._waiting and not new and not len(live):
            raise RuntimeError("the KV cache has no room for one answer")
        if not new and batch_size(len(live), most) > _SHRINK * self.size:
            return
        self.size = batch_size(len(live) + len(new), most)
        self._rows.rearrange(live.tolist(), [self._row(each) for each in new], self.size)
        self.answers = np.concatenate([self.answers[live], np.array(new, dtype=np.int64)])
        self._model.use_adapters(self._rows.adapter[: self.size])
        self.longest = max((self._state.last_position(each) + 2 for each in self.answers.tolist()), default=1)

    def _needed(self, index: int) -> int:
        return self._pages.needed(self._state.last_position(index) + 1 - self._shared)

    def _admit(self, most: int, at_least: int) -> list[int]:
        """Take waiting requests into the KV cache, in their order, and compute their prompts. Returns their indices.

        Takes none if there is no room for ``at_least`` so many.
        """
        count = pages = 0
        for index in islice(self._waiting, most):
            pages += self._needed(index)
            if not self._pages.room_for(pages):
                break
            count += 1
        if count < min(at_least, len(self._waiting)):
            return []
        new = [self._waiting.popleft() for _ in range(count)]
        stretches = []
        for index in new:
            self._held[index] = self._pages.take(self._needed(index))
            request = self._requests[index]
            stretches.append(
                Stretch(request.prompt[self._shared : -1], self._shared, self._table(index), request.adapter)
            )
        prefill(self._model, stretches)
        return new

    def _table(self, index: int) -> list[int]:
        return [*self._prefixes.get(self._requests[index].adapter, []), *self._held[index]]

    def _row(self, index: int) -> NewRow:
        request = self._requests[index]
        last = self._state.last_position(index)
        return NewRow(request.prompt[-1], len(request.prompt) - 1, last, self._table(index), request.adapter)

"""Prefill: computes the prompts' keys and values in few large packed batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from esplug.rollout.model import Packed, PagedModel


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive tokens of a prompt, from position ``start`` on; those before are in the KV cache's ``pages``."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    adapter: int


def prefill(model: PagedModel, stretches: Sequence[Stretch]) -> None:
    """Compute the keys and values of all stretches."""
    for batch in _batches(stretches, model.most_tokens, model.most_rows):
        packed, adapters = _pack(batch, model)
        model.use_adapters(adapters)
        model.hidden(packed)


def _batches(stretches: Sequence[Stretch], most_tokens: int, most_rows: int) -> Iterator[list[Stretch]]:
    """Cut stretches into batches of at most ``most_tokens`` tokens and ``most_rows`` stretches."""
    batch: list[Stretch] = []
    room = most_tokens
    for each in stretches:
        done = 0
        while done < len(each.tokens):
            if room == 0 or len(batch) == most_rows:
                yield batch
                batch, room = [], most_tokens
            part = each.tokens[done : done + room]
            batch.append(Stretch(part, each.start + done, each.pages, each.adapter))
            done, room = done + len(part), room - len(part)
    if batch:
        yield batch


def _pack(batch: Sequence[Stretch], model: PagedModel) -> tuple[Packed, torch.Tensor]:
    """Lay out a batch, and return with it the adapter of each token."""
    counts = np.array([len(each.tokens) for each in batch], dtype=np.int64)
    starts = np.concatenate([[0], counts.cumsum()])
    ends = np.array([each.start for each in batch], dtype=np.int64) + counts
    positions = np.arange(starts[-1]) + np.repeat(ends - starts[1:], counts)
    table = np.zeros((len(batch), max(len(each.pages) for each in batch)), dtype=np.int32)
    for row, each in zip(table, batch, strict=True):
        row[: len(each.pages)] = each.pages
    sequence = np.repeat(np.arange(len(batch)), counts)
    places = (
        table[sequence, positions // model.page_size].astype(np.int64) * model.page_size + positions % model.page_size
    )
    tokens = np.concatenate([np.asarray(each.tokens, dtype=np.int64) for each in batch])
    adapters = np.repeat(np.array([each.adapter for each in batch], dtype=np.int64), counts)
    values = torch.from_numpy(np.stack([tokens, positions, places, adapters])).to(model.device)
    # Copies, because compiled models expect aligned inputs, and token ids of this type.
    on_device = [values[0].to(torch.int32), *(each.clone() for each in values[1:])]
    starts_on_host = torch.from_numpy(starts.astype(np.int32))
    packed = Packed(
        *(on_device[0], on_device[1], on_device[2]),
        starts=starts_on_host.to(model.device),
        starts_on_host=starts_on_host,
        lengths=torch.from_numpy(ends.astype(np.int32)).to(model.device),
        table=torch.from_numpy(table).to(model.device),
        most_new=int(counts.max()),
        longest=int(ends.max()),
    )
    return packed, on_device[3]

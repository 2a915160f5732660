"""Prompts of a run: encodes and checks them before an engine starts, and decides whether engines share prefixes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.checkpoints.base_model import weights_size
from esplug.config import RunConfig
from esplug.data.batches import Batch, Batches
from esplug.data.prompts import PromptBuilder
from esplug.data.splits import EvaluationSplit
from esplug.planning.placement import Plan
from esplug.planning.shared_prefix import sharing_saves_time


@dataclass(frozen=True, slots=True)
class RunPrompts:
    """The data of a run.

    Attributes:
        splits: evaluation splits by name.
        batches: endless training batches, starting at the run's first iteration.
        train_data: rows and fingerprint of the training data; ``None`` if they are not in memory.
        known: token ids of the splits' prompts and of the first training batch's.
    """

    splits: dict[str, EvaluationSplit]
    batches: Iterator[Batch]
    train_data: dict[str, Any] | None
    known: list[list[list[int]]]


def check_prompts(
    builder: PromptBuilder,
    train_dataloader: Iterable[Batch] | None,
    eval_dataloaders: Mapping[str, Iterable[Batch]],
    iterations: range,
) -> RunPrompts:
    """Encode the evaluation data, the first training batch, and all training data that are in memory.

    Args:
        builder: makes prompts of questions.
        train_dataloader: batches; not read if the run has no iterations, except for rows in memory.
        eval_dataloaders: batches of each split.
        iterations: of the run, from the first one that is still to do.

    Raises:
        UserError: a batch or prompt is invalid.
    """
    splits = {name: builder.split(name, loader) for name, loader in eval_dataloaders.items()}
    batches: Iterator[Batch] = iter(())
    known = [split.prompts for split in splits.values()]
    train_data = builder.fingerprint(train_dataloader) if isinstance(train_dataloader, Batches) else None
    if train_dataloader is not None and iterations.stop:
        prompts, batches = builder.batches(train_dataloader, iterations.start)
        known.append(prompts)
    return RunPrompts(splits, batches, train_data, known)


def shares_prefixes(config: RunConfig, model: Path, plan: Plan, batches: Sequence[Sequence[Sequence[int]]]) -> bool:
    """Whether engines cache the prompts' common prefix: on a CPU always, on a GPU if that saves time for any batch."""
    if plan.device == "cpu" or config.eval_n_samples > 1:
        return True
    weights = weights_size(model)[1]
    return any(sharing_saves_time(prompts, config.max_tokens, weights) for prompts in batches)

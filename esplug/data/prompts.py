"""From a user's batches to the prompts that engines take, checked before an engine starts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, TypeAlias

from esplug.data.batches import Batches
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.splits import EvaluationSplit, fingerprint
from esplug.errors import UserError
from esplug.hookspecs import Prompt

Batch: TypeAlias = tuple[Sequence[Any], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Asks questions the way the task asks them.

    Attributes:
        encoder: of the model.
        template: from a question to its prompt; ``None`` where questions are prompts.
    """

    encoder: PromptEncoder
    template: Callable[[Any], Prompt] | None

    def encode(self, questions: Sequence[Any]) -> list[list[int]]:
        """Return the token ids of each question's prompt.

        Raises:
            UserError: a prompt is empty or too long, or is none.
        """
        return self.encoder.encode([self._prompt(question) for question in questions])

    def split(self, name: str, loader: Iterable[Batch]) -> EvaluationSplit:
        """Return the rows of an evaluation split.

        Raises:
            UserError: it has none, or a batch or prompt is not as it must be.
        """
        batches = [_checked(batch, f"eval_dataloader_dict[{name!r}]") for batch in loader]
        prompts = [self._prompt(question) for questions, _ in batches for question in questions]
        targets = [target for _, targets in batches for target in targets]
        if not prompts:
            raise UserError(f"evaluation split {name!r} has no rows")
        return EvaluationSplit([self.encoder.render(p) for p in prompts], self.encoder.encode(prompts), targets)

    def fingerprint(self, rows: Batches) -> dict[str, Any]:
        """Return what tells one set of training rows from another, having checked every prompt."""
        return {
            "rows": len(rows.prompts),
            "fingerprint": fingerprint(map(str, self.encode(rows.prompts)), rows.targets),
        }

    def batches(self, loader: Iterable[Batch], skipped: int) -> tuple[list[list[int]], Iterator[Batch]]:
        """Return the first training batch's prompts as token ids, and an endless stream behind the first ``skipped``.

        Raises:
            UserError: the first batch or its prompts are not as they must be; a later one raises when its turn comes.
        """
        stream = _endless(loader)
        first = next(stream)
        return self.encode(first[0]), islice(chain([first], stream), skipped, None)

    def _prompt(self, question: Any) -> Prompt:
        prompt: Prompt = self.template(question) if self.template else question
        return prompt


def _endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield _checked(batch, "train_dataloader")
        if empty:
            raise UserError("the training data has no batches")


def _checked(batch: Any, where: str) -> Batch:
    try:
        questions, targets = batch
        questions, targets = list(questions), list(targets)
    except (TypeError, ValueError):
        raise UserError(f"{where}: each batch must be (list of prompts, list of targets)") from None
    if len(questions) != len(targets) or not questions:
        raise UserError(f"{where}: a batch has {len(questions)} prompts and {len(targets)} targets")
    return questions, targets

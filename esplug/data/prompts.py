"""Prompt builder: checks the user's batches and builds the engines' prompts from their questions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from esplug.data.batches import Batch, Batches
from esplug.data.prompt_encoder import PromptEncoder
from esplug.data.splits import EvaluationSplit, fingerprint
from esplug.errors import UserError
from esplug.hookspecs import Prompt


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Builds prompts from questions with the task's template."""

    encoder: PromptEncoder
    template: Callable[[Any], Prompt] | None  # returns the prompt of a question; None if questions are prompts

    def encode(self, questions: Sequence[Any], where: str = "") -> list[list[int]]:
        """Return the token ids of each question's prompt. An error begins with ``where`` and the question's number."""
        return self.encoder.encode(self.prompts(questions), where)

    def prompts(self, questions: Sequence[Any]) -> list[Prompt]:
        """Return each question's prompt."""
        return [self._prompt(question) for question in questions]

    def text(self, question: Any) -> str:
        """Return a question's prompt as the model sees it."""
        return self.encoder.render(self._prompt(question))

    def split(self, name: str, loader: Iterable[Batch]) -> EvaluationSplit:
        """Return the rows of an evaluation split, after checking its name, batches and prompts."""
        if name == "average":
            raise UserError("evaluation split 'average': results give the average of all splits that name; rename it")
        batches = [_checked(batch, f"eval_dataloader_dict[{name!r}]") for batch in loader]
        prompts = [self._prompt(question) for questions, _ in batches for question in questions]
        targets = [target for _, targets in batches for target in targets]
        if not prompts:
            raise UserError(f"evaluation split {name!r} has no rows")
        encoded = self.encoder.encode(prompts, f"evaluation split {name!r}, row")
        return EvaluationSplit([self.encoder.render(prompt) for prompt in prompts], encoded, targets, prompts)

    def fingerprint(self, rows: Batches) -> dict[str, Any]:
        """Check every prompt, and return the number of training rows and their fingerprint."""
        hashed = fingerprint(map(str, self.encode(rows.prompts, "training row")), rows.targets)
        return {"rows": len(rows.prompts), "fingerprint": hashed}

    def batches(self, loader: Iterable[Batch], skipped: int) -> tuple[Batch, Iterator[Batch]]:
        """Return the first training batch, and the endless stream of batches after ``skipped``.

        The first batch is checked at once, a later one when it is drawn.
        """
        stream = _endless(loader)
        first = next(stream)
        return first, islice(chain([first], stream), skipped, None)

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

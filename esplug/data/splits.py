"""Evaluation splits, and the fingerprint that identifies rows."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from esplug.hookspecs import Prompt


@dataclass(frozen=True, slots=True)
class EvaluationSplit:
    """A split's R rows: prompts as text and as token ids, targets, and prompts as the task gave them."""

    texts: list[str]
    prompts: list[list[int]]
    targets: list[Any]
    templates: Sequence[Prompt] = ()

    @property
    def columns(self) -> tuple[Any, ...]:
        """The fields, in order."""
        return self.texts, self.prompts, self.targets, self.templates

    def fingerprint(self) -> str:
        """Return the :func:`fingerprint` of the prompts and targets."""
        return fingerprint(self.texts, self.targets)


def fingerprint(prompts: Iterable[str], targets: Iterable[Any]) -> str:
    """Return a hash of rows: equal prompts and targets have equal fingerprints."""
    digest = blake2b(digest_size=16)
    for prompt, target in zip(prompts, targets, strict=True):
        shown = re.sub(r" at 0x[0-9a-f]+", "", repr(target))  # the address in the default repr of an object
        digest.update(f"{len(prompt)} {prompt} {shown}\n".encode(errors="replace"))
    return digest.hexdigest()

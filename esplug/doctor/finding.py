"""One finding: the result of a check."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        check: name of the check, in a word or two.
        state: ``fail`` if training cannot work, ``warning`` if it might not.
        found: result, in one line.
        remedy: what to do about it; empty if there is nothing to do.
    """

    check: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")

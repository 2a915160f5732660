"""What a check has found."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        check: what was looked at, in a word or two.
        state: ``fail`` where training cannot work, ``warning`` where it may not.
        found: what there is, in one line.
        remedy: what to do about it; empty where there is nothing to do.
    """

    check: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")

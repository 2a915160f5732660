"""One finding: the result of a check."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table: ``fail`` if training cannot work, ``warning`` if it might not."""

    check: str
    state: State
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")

"""One finding: the result of a check."""

import shlex
from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["ok", "warning", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table: ``fail`` if training cannot work, ``warning`` if it might not.

    Attributes:
        fix: arguments of pip that apply the remedy, for ``esplug doctor --fix``; empty if pip cannot.
    """

    check: str
    state: State
    found: str
    remedy: str = ""
    fix: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def fixed_by_pip(check: str, state: State, found: str, *arguments: str, note: str = "") -> Finding:
    """Make a finding whose remedy is a command of pip, after ``note`` if there is one."""
    return Finding(check, state, found, f"{note}pip {shlex.join(arguments)}", arguments)

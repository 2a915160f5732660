"""The one console that everything meant for people is printed on."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def get_console() -> "Console":
    """Return the shared console, on standard output; made at the first call."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def printable(text: str) -> str:
    """Write what is not printable in somebody's data as escapes, which a terminal does not obey; lines stay lines."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)

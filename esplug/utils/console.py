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

"""The shared console: everything meant for people is printed on it."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def get_console() -> "Console":
    """Return the console on standard output; the first call creates it."""
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def say(text: str, style: str | None = None, end: str = "\n") -> None:
    """Print a text as it is: brackets are not markup, and lines are not wrapped."""
    get_console().print(text, style=style, end=end, markup=False, soft_wrap=True)

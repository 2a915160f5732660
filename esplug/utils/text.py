"""Text for messages: exceptions, unknown text and misspelt names, each in one line."""

import difflib
from collections.abc import Iterable


def cause(error: BaseException) -> str:
    """Name an exception in one line, for the brackets of an error message."""
    text = brief(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def brief(text: str, longest: int = 300) -> str:
    """Put a text of unknown size and shape into one line, its middle left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 60]} ... {line[-50:]}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's text, not too long, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def printable(text: str) -> str:
    """Write what is not printable in somebody's data as escapes, which a terminal does not obey; lines stay lines."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)

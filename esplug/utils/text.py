"""Text for messages: exceptions in one line, untrusted text made printable, suggestions, tables."""

import difflib
from collections.abc import Iterable, Sequence
from unicodedata import category

#: Unicode categories of characters that are invisible or that a terminal obeys: control and format characters,
#: surrogates, private and unassigned ones, and ends of lines.
_UNPRINTABLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}

#: Words for true and false, in lower case.
BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def cause(error: BaseException) -> str:
    """Describe an exception in one line, for the brackets of an error message."""
    text = brief(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def brief(text: str, longest: int = 300) -> str:
    """Put any text into one line, and cut out its middle if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 60]} ... {line[-50:]}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the nearest known name, or an empty text if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def cut_at(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the end of its first stop text, if it has one."""
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    return text[: min(ends)] if ends else text


def one_line(error: BaseException) -> str:
    """Return the first line of an exception's text, at most 300 characters, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align the columns of a table, one line a row. A narrow terminal wraps the lines but never cuts them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def printable(text: str) -> str:
    """Escape characters that are invisible or that a terminal obeys. Tabs and newlines stay."""
    return "".join(_escaped(ord(c)) if c not in "\n\t" and category(c) in _UNPRINTABLE else c for c in text)


def _escaped(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # its symbol, such as ␛ for escape
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

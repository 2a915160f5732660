"""Text for messages: exceptions in one line, untrusted text made printable, suggestions, tables."""

import difflib
import re
from collections.abc import Iterable, Sequence

#: Characters that are invisible or that a terminal obeys: control characters except tab and newline, surrogates, marks
#: that change the direction of writing, and other format characters.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)


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
    return _UNPRINTABLE.sub(lambda found: _escaped(ord(found[0])), text)


def _escaped(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # its symbol, such as ␛ for escape
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

"""Untrusted text for display: invisible characters are spelled out, and long text is cut."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Control characters except tab and newline, lone surrogates, and marks that change the writing direction.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u202a-\u202e\u2028\u2029\u2060-\u2069\ufeff]"
)


def visible(text: str, longest: int = 3000) -> str:
    """Cut the middle out of a long text, and spell out characters that are invisible or affect other text."""
    if len(text) > longest:
        head, tail = longest * 2 // 3, longest // 3
        text = f"{text[:head]} […{len(text) - head - tail:,} characters left out…] {text[-tail:]}"
    return _INVISIBLE.sub(lambda found: _spelled_out(ord(found[0])), text)


def shown(value: Any) -> str:
    """Format a setting or a value of the environment for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(str(key), 200)} {shown(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return visible(f"{value:g}" if isinstance(value, float) else str(value), 1000)


def _spelled_out(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

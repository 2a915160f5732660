"""Untrusted text for the report: made printable and cut to a reasonable length."""

from collections.abc import Mapping, Sequence
from typing import Any

from esplug.utils.text import printable


def visible(text: str, longest: int = 3000) -> str:
    """Cut out the middle of a long text, and escape characters that are invisible or change what is around them."""
    if len(text) > longest:
        head, tail = longest * 2 // 3, longest // 3
        text = f"{text[:head]} […{len(text) - head - tail:,} characters left out…] {text[-tail:]}"
    return printable(text)


def shown(value: Any) -> str:
    """Format a setting or a fact about the environment for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(str(key), 200)} {shown(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return visible(f"{value:g}" if isinstance(value, float) else str(value), 1000)

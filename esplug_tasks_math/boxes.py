r"""Finder of the final answer: the content of the last ``\boxed{...}`` of a text."""

import re

#: Limits on malicious text: characters in a box, and boxes searched from the end of the text.
LONGEST_BOX, MOST_BOXES = 10_000, 20

_COMMANDS = (r"\boxed", r"\fbox")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # a backslash escapes the brace after it
_UNBRACED = re.compile(r"\s*([-+0-9.\\][^\s$]*|[A-Z](?=[\s$.,;:]|$))")  # not a word of a sentence about boxes


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last box, or ``None`` if there is none, or if its braces never close.

    ``\fbox`` counts as well. ``\boxed 5`` without braces ends at the next space or ``$``. Of nested boxes, the inner
    one counts. A box that never closes is an unfinished answer, so an earlier box does not count. Work is bounded on
    any text: a box longer than 10,000 characters is unfinished, and boxes before the last 20 are ignored.
    """
    end = len(text)
    for _ in range(MOST_BOXES):
        start, command = max((text.rfind(command, 0, end), command) for command in _COMMANDS)
        if start < 0:
            return None
        position = start + len(command)
        content = _content(text, position)
        if content is not None or text[position : position + LONGEST_BOX].lstrip().startswith("{"):
            return content
        end = start
    return None


def _content(text: str, position: int) -> str | None:
    limit = min(len(text), position + LONGEST_BOX)
    opening = position
    while opening < limit and text[opening].isspace():
        opening += 1
    if text[opening : opening + 1] == "{":
        closing = _closing_brace(text, opening, limit)
        return None if closing is None else text[opening + 1 : closing]
    if text[position : position + 1].isalpha():  # the start of another command
        return None
    unbraced = _UNBRACED.match(text, position, limit)
    return unbraced[1].rstrip(".,;:") or None if unbraced else None


def _closing_brace(text: str, opening: int, limit: int) -> int | None:
    depth = 0
    for match in _BRACE.finditer(text, opening, limit):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.start()
    return None

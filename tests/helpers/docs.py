"""Pages of the documentation and their code blocks."""

import re
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    """Return a page's text, including the files that it includes."""
    text = page.read_text(encoding="utf-8")
    included = re.findall(r"^```\{include\} (\S+)", text, re.MULTILINE)
    return "\n".join([text, *((page.parent / other).read_text(encoding="utf-8") for other in included)])


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    return [match["text"] for match in FENCE.finditer(text_of(page)) if match["language"] in languages]

"""The page of a report, read by its elements, and text that must not become part of it."""

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """A page's text, its elements with their attributes, and its figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, Any] = {}
        self._inside = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        attributes = self.elements[-1][1] if self.elements else {}
        if self._inside not in ("script", "style"):
            self.texts.append(data)
        elif attributes.get("type") == "application/json":
            self.figures[str(attributes["id"])] = json.loads(data)


def lines_of(page: Page, name: str) -> dict[str, Any]:
    """Return a figure's lines or bars by their label."""
    return {each["label"]: each for each in page.figures[name]["lines"] + page.figures[name]["bars"]}


HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</pre></article><h1>no</h1>",
    "{{ 7*7 }} {% raw %} ${x}",
    "<!-- <script>",
    "\x00\x1b[31mred\x7f\u202etxt\ud83d\u2028",
    "<a href='http://example.org'>x</a>",
    "é五🙂 &amp; &lt;",
]

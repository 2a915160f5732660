"""Reports made by the command line."""

from pathlib import Path

import pytest

from tests.helpers.cli import run_cli
from tests.helpers.report_pages import Page


@pytest.fixture
def report(monkeypatch, capfd, tmp_path):
    """Return a function that makes a report on runs and parses the page."""

    def make(*paths: Path) -> Page:
        page = tmp_path / "page.html"
        code, out, err = run_cli(monkeypatch, capfd, "report", *map(str, paths), "--output", str(page))
        assert (code, out, err) == (0, f"{page}\n", "")
        return Page(page.read_text(encoding="utf-8"))

    return make

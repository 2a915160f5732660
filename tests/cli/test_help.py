"""The help of every command: short cells, and no text that the terminal takes for markup."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from esplug.cli.app import app
from tests.helpers.cli import run_cli

LONGEST_CELL = 3  # lines


def commands(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    yield names
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, *names, name)


COMMANDS = list(commands(typer.main.get_command(app)))


def cells(text: str) -> dict[str, int]:
    """Return the number of lines of each option, argument and command in a help text."""
    found: dict[str, int] = {}
    name = ""
    for line in text.splitlines():
        row = re.fullmatch(r"│ ([* ]?\s{0,4})(\S*)(.*)│", line)
        if row is None:
            name = ""
        elif row[2]:
            name = row[2]
            found[name] = 1
        elif name:
            found[name] += 1
    return found


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_no_cell_of_the_help_is_longer_than_three_lines(names, width, monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _, out, _ = run_cli(monkeypatch, capfd, *names, "--help")
    found = cells(out)
    assert "--help" in found
    assert {name: lines for name, lines in found.items() if lines > LONGEST_CELL} == {}


def test_a_long_cell_would_be_found() -> None:
    panel = ["│ --a    INT    one     │", "│               two     │", "│ *  --b        one     │"]
    assert cells("\n".join([*panel, "│ b      TEXT   one     │"])) == {"--a": 2, "--b": 1, "b": 1}


@pytest.mark.parametrize("command", ["train", "eval"])
def test_brackets_are_no_markup(command, monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run_cli(monkeypatch, capfd, command, "--help")
    assert "Hugging Face id[@revision]." in out
    assert "[default: the task's own]" in out

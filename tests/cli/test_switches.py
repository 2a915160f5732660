"""Switches of all commands, with and without a value, as found by introspection."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from esplug.cli.app import app
from esplug.cli.switches import without_values
from esplug.errors import UserError
from tests.helpers.cli import errors_of, run_cli

ROOT: Any = typer.main.get_command(app)


def switches(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any, str]]:
    """Yield every switch: the names of its command, the command, and the flag."""
    for option in command.params:
        if option.param_type_name == "option" and option.is_flag:
            yield from ((names, command, flag) for flag in option.opts if flag.startswith("--"))
    for name, each in getattr(command, "commands", {}).items():
        yield from switches(each, *names, name)


SWITCHES = list(switches(ROOT))
every_switch = pytest.mark.parametrize(("names", "command", "flag"), SWITCHES, ids=lambda value: str(value)[:40])


def takes_arguments(command: Any) -> bool:
    return hasattr(command, "commands") or any(each.param_type_name == "argument" for each in command.params)


def test_there_are_switches_with_and_without_an_opposite() -> None:
    found = {(names, flag) for names, _, flag in SWITCHES}
    assert len(found) > 20
    assert {(("train",), "--save-best-models"), (("train",), "--no-antithetic"), (("eval",), "--debug")} <= found
    assert {(("report",), "--png"), ((), "--version"), (("config", "show"), "--antithetic")} <= found


@every_switch
@pytest.mark.parametrize("join", [" ", "="])
@pytest.mark.parametrize("value", ["True", "true", "1", "yes", "YES"])
def test_true_is_the_switch(names, command, flag, value, join) -> None:
    if join == " " and value == "1" and takes_arguments(command):
        return  # it is an argument; see below
    assert without_values(ROOT, [*names, *f"{flag}{join}{value}".split(), "--x", "y"]) == [*names, flag, "--x", "y"]


@every_switch
@pytest.mark.parametrize("join", [" ", "="])
@pytest.mark.parametrize("value", ["False", "false", "0", "no"])
def test_false_is_the_opposite_or_nothing(names, command, flag, value, join) -> None:
    if join == " " and value == "0" and takes_arguments(command):
        return
    known = {opt for option in command.params if getattr(option, "is_flag", False) for opt in option.opts}
    opposite = flag.replace("--no-", "--") if flag.startswith("--no-") else flag.replace("--", "--no-")
    expected = [opposite] if opposite in known else []
    assert without_values(ROOT, [*names, *f"{flag}{join}{value}".split(), "--x"]) == [*names, *expected, "--x"]


@every_switch
@pytest.mark.parametrize("value", ["=maybe", "=", "=2", " maybe", " 2"])
def test_another_value_is_one_line_that_says_what_a_switch_is(names, command, flag, value) -> None:
    if value.startswith(" ") and takes_arguments(command):
        arguments = [*names, flag, value.strip()]
        assert without_values(ROOT, arguments) == arguments
        return
    with pytest.raises(UserError, match=rf"^{flag} '.*': {flag} is a switch; write {flag}"):
        without_values(ROOT, [*names, *f"{flag}{value}".split()])


@pytest.mark.parametrize(
    "arguments",
    [
        "report --png 1 0",
        "report --png runs/true --output true",
        "train --stop --antithetic --stop true --config x",
        "train --experiment-name true --antithetic --save-best-models --alpha 1",
        "check --debug -- true",
        "plugins --json",
        "eval --compare --debug true",
        "nonsense --antithetic True",
        "",
    ],
)
def test_other_words_stay(arguments) -> None:
    assert without_values(ROOT, arguments.split()) == arguments.split()


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ("--save-best-models True --antithetic=true", {"save_best_models": True, "antithetic": True}),
        ("--save-best-models True --antithetic False", {"save_best_models": True, "antithetic": False}),
        ("--config {file} --antithetic 0", {"save_best_models": True, "antithetic": False}),
        ("--config {file} --no-antithetic --no-save-best-models yes", {"save_best_models": False, "antithetic": False}),
        ("--config {file}", {"save_best_models": True, "antithetic": True}),
    ],
)
def test_a_switch_with_a_value_reaches_the_settings(arguments, settings, monkeypatch, capfd, tmp_path) -> None:
    (tmp_path / "c.toml").write_text("save_best_models = true\nantithetic = true\n")
    flags = arguments.format(file=tmp_path / "c.toml").split()
    code, out, err = run_cli(monkeypatch, capfd, "config", "show", *flags)
    assert code == 0, err
    for name, value in settings.items():
        assert f"{name} = {str(value).lower()} " in out


def test_the_error_at_the_command_line(monkeypatch, capfd) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "train", "--save-best-models", "always")
    assert code == 2
    assert errors_of(err) == [
        "error: --save-best-models 'always': --save-best-models is a switch; "
        "write --save-best-models or --no-save-best-models"
    ]

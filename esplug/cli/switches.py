"""Switches with a value: ``--antithetic True`` becomes ``--antithetic`` before the command line is parsed.

Other programs take values for switches, among them ES-at-Scale. A parser that does not would say that ``True`` is one
argument too many.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

from esplug.errors import UserError
from esplug.utils.text import BOOLEANS, brief


def without_values(command: Any, arguments: Iterable[str]) -> list[str]:
    """Replace switches with a value by the switch, its opposite, or nothing.

    After a switch of a command that takes arguments, ``1`` and ``0`` are arguments, such as names of folders. There,
    and everywhere else, ``--switch=1`` works.

    Args:
        command: the command, or a group of commands, to which the arguments belong.
        arguments: words of the command line after the command's name.

    Raises:
        UserError: a switch has a value that is neither true nor false.
    """
    options = {flag: option for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    commands = getattr(command, "commands", {})
    takes_arguments = bool(commands) or any(each.param_type_name == "argument" for each in command.params)
    kept: list[str] = []
    rest = deque(arguments)
    while rest and rest[0] != "--":
        word = rest.popleft()
        flag, equals, value = word.partition("=")
        option = options.get(flag) if flag.startswith("-") else None
        if option is None and word in commands:
            return [*kept, word, *without_values(commands[word], rest)]
        if option is None or not option.is_flag:
            kept.append(word)
            if option is not None and not equals:
                kept += [rest.popleft() for _ in range(min(option.nargs, len(rest)))]
            continue
        if not equals and rest and _is_value(rest[0], takes_arguments):
            equals, value = "=", rest.popleft()
        switches = [name for name, each in options.items() if getattr(each, "is_flag", False)]
        kept += _chosen(flag, value, switches) if equals else [flag]
    return [*kept, *rest]


def _is_value(word: str, takes_arguments: bool) -> bool:
    """Whether the word after a switch is its value."""
    if takes_arguments:
        return word.lower() in BOOLEANS and not word.isdigit()
    return not word.startswith("-")


def _chosen(flag: str, value: str, options: Iterable[str]) -> list[str]:
    """Return the words that stand for a switch with a value."""
    name = flag.removeprefix("--")
    opposite = f"--{name.removeprefix('no-')}" if name.startswith("no-") else f"--no-{name}"
    opposites = [opposite] if opposite in options else []
    on = BOOLEANS.get(value.lower())
    if on is None:
        remedy = f"{flag} or {opposite}" if opposites else f"{flag}, or leave it out"
        raise UserError(f"{flag} {brief(repr(value))}: {flag} is a switch; write {remedy}")
    return [flag] if on else opposites

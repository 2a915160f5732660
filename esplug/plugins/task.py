"""Task wrapper: a task plugin's hooks, called with its options and with their results checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from esplug.config import make_config
from esplug.errors import PluginError, UserError
from esplug.hookspecs import Example, Message, Prompt, Row
from esplug.plugins.discovery import PluginInfo, find
from esplug.plugins.loading import hook_errors, load
from esplug.utils.text import BOOLEANS, cause, suggest


@dataclass(frozen=True)
class Task:
    """A task and its options. Pickles as name and options, so ``task.reward`` can be sent to other processes.

    Its methods call the hooks, raise as :func:`hook_errors` says, and raise ``PluginError`` on an invalid result.
    """

    info: PluginInfo
    relay: pluggy.HookRelay
    options: Mapping[str, Any]  #: all that the task declares, with the user's values converted to the declared types

    @classmethod
    def load(cls, name: str, options: Mapping[str, object] | None = None) -> "Task":
        """Import an installed task, and convert the user's options to the types of the defaults."""
        return cls.wrap(find("task", name), load("task", name), options)

    @classmethod
    def wrap(cls, info: PluginInfo, relay: pluggy.HookRelay, options: Mapping[str, object] | None = None) -> "Task":
        """Make a task from hooks that are already loaded, for example those of an uninstalled plugin under test."""
        with hook_errors(info, "options"):
            declared = dict(relay.options(given=dict(options or {})) or {})
        return cls(info, relay, _filled_in(info, declared, options or {}))

    def __reduce__(self) -> tuple[Any, ...]:
        return Task.load, (self.name, dict(self.options))

    @property
    def name(self) -> str:
        """The entry point's name."""
        return self.info.name

    def defaults(self) -> dict[str, Any]:
        """Return the task's recommended settings, ``{}`` if it has none."""
        with hook_errors(self.info, "defaults"):
            recommended = dict(self.relay.defaults(options=self.options) or {})
        try:
            make_config(recommended)
        except UserError as error:
            fault = f"{self.info}: its defaults are not valid settings [{error}]"
            raise PluginError(f"{fault}; fix or update the plugin") from error
        return recommended

    def load_rows(self, split: str, path: str | None) -> Sequence[Row] | Mapping[str, Sequence[Row]] | None:
        """Ask the task for rows; ``None`` means that esplug loads them."""
        rows: Sequence[Row] | Mapping[str, Sequence[Row]] | None
        with hook_errors(self.info, "load_rows"):
            rows = self.relay.load_rows(split=split, path=path, options=self.options)
        return rows

    def collate(self, rows: Sequence[Row]) -> tuple[list[Any], list[Any]]:
        """Turn B rows into B questions and B targets. Raise ``UserError`` if the rows lack a column."""
        with hook_errors(self.info, "collate"):
            try:
                pair = self.relay.collate(batch=rows, options=self.options)
            except KeyError as error:
                raise _missing_column(self.info, self.options, error, rows) from error
        match pair:
            case (list() | tuple() as questions, list() | tuple() as targets):
                lengths = len(questions), len(targets)
                if lengths == (len(rows), len(rows)):
                    return list(questions), list(targets)
                fault = f"{lengths[0]} questions and {lengths[1]} targets for {len(rows)} rows"
            case _:
                fault = f"{type(pair).__name__} instead of two lists"
        raise PluginError(f"{self.info}: collate returned {fault}; it must return (questions, targets)")

    def template(self, question: Any) -> Prompt:
        """Turn a question into text or chat messages."""
        with hook_errors(self.info, "template"):
            prompt: Prompt = self.relay.template(question=question, options=self.options)
        if not (isinstance(prompt, str) or _are_messages(prompt)):
            wanted = 'text or a list of {"role": ..., "content": ...}'
            raise PluginError(f"{self.info}: template returned {type(prompt).__name__}; it must return {wanted}")
        return prompt

    def reward(self, model_output: str, target: Any, messages: Sequence[Message] = ()) -> Any:
        """Grade one answer or conversation. The caller handles exceptions and validates the result."""
        asked = {"model_output": model_output, "target": target, "messages": list(messages)}
        return self.relay.reward(**asked, options=self.options)

    @property
    def turn_function(self) -> Callable[[list[Message], Any], Any] | None:
        """:meth:`turn`, if the task has that hook."""
        return self.turn if self.relay.turn.get_hookimpls() else None

    def turn(self, messages: list[Message], target: Any) -> Any:
        """Reply to the model. The caller handles exceptions and validates the result."""
        return self.relay.turn(messages=messages, target=target, options=self.options)


def examples(name: str) -> list[Example]:
    """Return the examples of an installed task. Raise ``UserError`` if it has none."""
    info, relay = find("task", name), load("task", name)
    with hook_errors(info, "examples"):
        found = relay.examples()
    if not found:
        raise UserError(f"task {name!r} has no examples to list; `esplug train --task {name} --dry-run` shows prompts")
    if not all(isinstance(example, Example) for example in found):
        raise PluginError(f"{info}: examples returned {type(found).__name__}; it must return a list of Example")
    return list(found)


def _missing_column(info: PluginInfo, options: Mapping[str, Any], error: KeyError, rows: Sequence[Row]) -> UserError:
    column = error.args[0] if error.args else None
    # A task lets users rename a column with an option whose value is the column's name.
    option = next((name for name, value in options.items() if value == column), None)
    remedy = f"; name another with --task-option {option}=COLUMN" if option else ""
    for number, row in enumerate(rows, start=1):
        if column not in row:
            fault = f"task {info.name!r} needs the column {column!r}, which row {number} of the batch lacks"
            return UserError(f"{fault}; columns found: {', '.join(map(str, row)) or 'none'}{remedy}")
    return PluginError(f"{info}: collate failed [{cause(error)}]; --debug shows the traceback")


def _are_messages(prompt: object) -> bool:
    return isinstance(prompt, list) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt
    )


def _filled_in(info: PluginInfo, declared: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, Any]:
    """Check the user's options against the declared ones, convert them, and fill in the defaults."""
    for name in given:
        if not declared:
            raise PluginError(f"task {info.name!r} takes no options; leave out {name!r}")
        if name not in declared:
            hint = suggest(name, declared) or "choose from"
            raise PluginError(f"task {info.name!r} has no option {name!r}; {hint} ({', '.join(declared)})")
    return dict(declared) | {name: _converted(info, name, given[name], declared[name]) for name in given}


def _converted(info: PluginInfo, name: str, value: object, default: object) -> object:
    expected = type(default)
    if expected not in (str, int, float, bool):
        fault = f"the default of option {name!r} is a {expected.__name__}; it must be a str, int, float or bool"
        raise PluginError(f"{info}: {fault}")
    try:
        if isinstance(value, str):
            return BOOLEANS[value.strip().lower()] if expected is bool else expected(value)
        if expected is float and type(value) is int:
            return float(value)
        if type(value) is expected:
            return value
    except (KeyError, ValueError):
        pass
    wanted = "bool (true or false)" if expected is bool else expected.__name__
    raise PluginError(f"task {info.name!r}: option {name!r} must be {wanted}, not {value!r}")

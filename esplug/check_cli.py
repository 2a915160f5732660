"""``esplug check``: the conformance kit on an installed plugin."""

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.errors import UserError
from esplug.init_cli import Kind
from esplug.plugins import PluginInfo, brief, find, list_plugins, suggest

if TYPE_CHECKING:
    from esplug.conformance import Check


def check(
    name: Annotated[str, typer.Argument(help="The plugin, as `esplug plugins` names it.")],
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What it is, where plugins of several kinds have the name.")
    ] = None,
    task_option: Annotated[
        list[str] | None, typer.Option("--task-option", metavar="KEY=VALUE", help="An option of the task. Repeatable.")
    ] = None,
    train_dataset: Annotated[
        str | None, typer.Option("--train-dataset", help="Training rows, as for `esplug train`.")
    ] = None,
    eval_dataset: Annotated[
        str | None, typer.Option("--eval-dataset", help="Evaluation rows, as for `esplug train`.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, of checks that fail too.")] = False,
) -> None:
    """Check that a task, reward shaping or logger does what a run asks of it. Exit status: 0 it does, 1 it does not."""
    from esplug import testing
    from esplug.config import make_config

    if debug:
        logging.basicConfig()
        logging.getLogger("esplug").setLevel(logging.DEBUG)
    kind = kind or _kind_of(name)
    plugin = find(kind.value, name)
    if kind is Kind.task:
        options = make_config({"task_options": task_option or []}).task_options
        checks = testing.task_checks(name, options, train_dataset=train_dataset, eval_dataset=eval_dataset)
    else:
        for flag, value in (
            ("--task-option", task_option),
            ("--train-dataset", train_dataset),
            ("--eval-dataset", eval_dataset),
        ):
            if value:
                raise UserError(f"{flag} is for tasks, and {name!r} is a {kind}; leave it out")
        checks = testing.shaping_checks(name) if kind is Kind.shaping else testing.logger_checks(name)
    _show(plugin, checks)
    raise typer.Exit(0 if all(each.ok for each in checks) else 1)


def _show(plugin: PluginInfo, checks: list["Check"]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from esplug.console import get_console

    table = Table("check", "", Column("what was found", overflow="fold"), title=Text(str(plugin)), title_justify="left")
    for each in checks:
        result = Text("pass", style="green") if each.ok else Text("FAIL", style="bold red")
        table.add_row(each.name, result, Text(each.detail))
    failed = sum(not each.ok for each in checks)
    get_console().print(table)
    get_console().print(f"{failed} of {len(checks)} checks fail" if failed else f"all {len(checks)} checks pass")


def _kind_of(name: str) -> Kind:
    """Tell which kind of plugin has a name.

    Raises:
        UserError: none has, or several have.
    """
    kinds = sorted({plugin.kind for plugin in list_plugins() if plugin.name == name})
    checkable = [Kind(each) for each in kinds if each in list(Kind)]
    match checkable:
        case [kind]:
            return kind
        case []:
            known = {plugin.name for plugin in list_plugins() if plugin.kind in list(Kind)}
            hint = suggest(name, known) or "`esplug plugins` lists them"
            raise UserError(f"no task, shaping or logger {brief(repr(name))} is installed; {hint}")
        case _:
            raise UserError(f"{name!r} is a {' and a '.join(checkable)}; say which: --kind {checkable[0]}")

"""``esplug check``: the conformance kit on an installed plugin."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.cli.init import Kind
from esplug.errors import UserError
from esplug.plugins.registry import find, list_plugins
from esplug.utils.console import get_console
from esplug.utils.text import brief, suggest

if TYPE_CHECKING:
    from esplug.authoring.conformance.checklist import Check

_NAME = 31  # columns for the name of a check


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
    kind, name = _named(kind, name)
    plugin = find(kind.value, name)
    if kind is Kind.task:
        options = make_config({"task_options": task_option or []}).task_options
        make_checks = partial(
            testing.task_checks, name, options, train_dataset=train_dataset, eval_dataset=eval_dataset
        )
    else:
        for flag, value in (
            ("--task-option", task_option),
            ("--train-dataset", train_dataset),
            ("--eval-dataset", eval_dataset),
        ):
            if value:
                raise UserError(f"{flag} is for tasks, and {name!r} is a {kind}; leave it out")
        make_checks = partial(testing.shaping_checks if kind is Kind.shaping else testing.logger_checks, name)
    get_console().print(str(plugin), markup=False, soft_wrap=True)
    checks = make_checks(report=_show)
    failed = sum(not each.ok for each in checks)
    get_console().print(f"{failed} of {len(checks)} checks fail" if failed else f"all {len(checks)} checks pass")
    raise typer.Exit(1 if failed else 0)


def _show(name: str, made: "Check | None") -> None:
    """Print a check's name before it is made, so that the last line names one that hangs; then how it went."""
    from rich.text import Text

    console = get_console()
    if made is None:
        console.print(f"{name:{_NAME}}", end="", markup=False, soft_wrap=True)
        return
    result = Text("pass  ", style="green") if made.ok else Text("FAIL  ", style="bold red")
    found = Text(made.detail).wrap(console, max(console.width - _NAME - len(result), 20))
    indented = Text("\n" + " " * (_NAME + len(result))).join(found)
    console.print(result.append_text(indented), soft_wrap=True)


def _named(kind: Kind | None, name: str) -> tuple[Kind, str]:
    """Return the kind and the name of a plugin that may be called by its distribution's name.

    Raises:
        UserError: the kind is not told.
    """
    from esplug.authoring.scaffold.new_plugin import without_prefix

    told, short = without_prefix(name)
    if told is None or any(plugin.name == name for plugin in list_plugins()):
        return kind or _kind_of(name), name
    return kind or Kind(told), short


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

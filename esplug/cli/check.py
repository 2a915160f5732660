"""``esplug check``: run the conformance kit on an installed plugin."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from esplug.cli.init import Kind
from esplug.errors import UserError
from esplug.utils.console import get_console, say

if TYPE_CHECKING:
    from esplug.authoring.conformance.checklist import Check

_NAME_WIDTH = 31  # columns for the name of a check


def check(
    name: Annotated[str, typer.Argument(help="The plugin, as `esplug plugins` names it.")],
    kind: Annotated[Kind | None, typer.Option(help="Its kind, if plugins of several kinds share the name.")] = None,
    task_option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Task option. Repeatable.")] = None,
    train_dataset: Annotated[str | None, typer.Option(help="Training rows, as for `esplug train`.")] = None,
    eval_dataset: Annotated[str | None, typer.Option(help="Evaluation rows, as for `esplug train`.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks, including those of failed checks.")] = False,
) -> None:
    """Check that a task, reward shaping or logger works in a run. Exit status: 0 all checks pass, 1 some fail."""
    from esplug import testing
    from esplug.config import make_config
    from esplug.plugins import find

    if debug:
        logging.basicConfig()
        logging.getLogger("esplug").setLevel(logging.DEBUG)
    kind, name = _resolve(kind, name)
    plugin = find(kind.value, name)
    if kind is Kind.task:
        options = make_config({"task_options": task_option or []}).task_options
        of_task = partial(testing.task_checks, name, options)
        make_checks = partial(of_task, train_dataset=train_dataset, eval_dataset=eval_dataset)
    else:
        for_tasks = {"--task-option": task_option, "--train-dataset": train_dataset, "--eval-dataset": eval_dataset}
        for flag, value in for_tasks.items():
            if value:
                raise UserError(f"{flag} is for tasks, and {name!r} is a {kind}; leave it out")
        make_checks = partial(testing.shaping_checks if kind is Kind.shaping else testing.logger_checks, name)
    say(str(plugin))
    checks = make_checks(report=_print_check)
    failed = sum(not each.ok for each in checks)
    skipped = sum(each.skipped for each in checks)
    made, rest = len(checks) - skipped, f" ({skipped} skipped)" if skipped else ""
    say(f"{failed} of {made} checks fail{rest}" if failed else f"all {made} checks pass{rest}")
    raise typer.Exit(1 if failed else 0)


def _print_check(name: str, done: "Check | None") -> None:
    """Print a check's name before it starts, so that the last line names one that hangs; then its result."""
    from rich.text import Text

    if done is None:
        say(f"{name:{_NAME_WIDTH}}", end="")
        return
    console = get_console()
    shown = ("skip  ", "yellow") if done.skipped else ("pass  ", "green") if done.ok else ("FAIL  ", "bold red")
    result = Text(*shown)
    lines = Text(done.detail).wrap(console, max(console.width - _NAME_WIDTH - len(result), 20))
    indented = Text("\n" + " " * (_NAME_WIDTH + len(result))).join(lines)
    console.print(result.append_text(indented), soft_wrap=True)


def _resolve(kind: Kind | None, name: str) -> tuple[Kind, str]:
    """Return a plugin's kind and name; the user may have given its distribution's name."""
    from esplug.authoring.scaffold.new_plugin import without_prefix
    from esplug.plugins import list_plugins

    prefix_kind, short = without_prefix(name)
    if prefix_kind is None or any(plugin.name == name for plugin in list_plugins()):
        return kind or _kind_of(name), name
    return kind or Kind(prefix_kind), short


def _kind_of(name: str) -> Kind:
    """Return the kind of the only plugin with this name."""
    from esplug.plugins import PUBLISHED, list_plugins, not_installed

    checkable = [plugin for plugin in list_plugins() if plugin.kind in list(Kind)]
    match sorted({plugin.kind for plugin in checkable if plugin.name == name}):
        case [kind]:
            return Kind(kind)
        case []:
            names = [plugin.name for plugin in checkable]
            raise not_installed("task, shaping or logger", name, names, PUBLISHED["task"])
        case kinds:
            raise UserError(f"{name!r} is a {' and a '.join(kinds)}; say which: --kind {kinds[0]}")

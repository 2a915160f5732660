"""``esplug doctor``: check whether training can work here."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esplug.cli.options import AsJson, ConfigFile, Debug, with_settings
from esplug.errors import UserError
from esplug.utils.console import get_console, say

if TYPE_CHECKING:
    from esplug.doctor.checkup import Checkup

_STYLES = {"ok": "green", "warning": "yellow", "fail": "bold red"}


Fix = Annotated[bool, typer.Option("--fix", help="Run the remedies that are pip commands; ask before each.")]
Yes = Annotated[bool, typer.Option("--yes", help="With --fix, do not ask.")]


@with_settings("train")
def doctor(
    flags: Mapping[str, Any],
    fix: Fix = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Check the installation, the machine and the plugins, and whether training with these settings can work here."""
    from esplug.doctor.checkup import checkup
    from esplug.doctor.repair import repair

    if fix and as_json:
        raise UserError("--json: --fix shows what pip prints; leave one of them out")
    if yes and not fix:
        raise UserError("--yes: it answers the questions of --fix; add that, or leave it out")
    if fix and not yes and not sys.stdin.isatty():
        raise UserError("--fix: it asks before it changes anything, and there is no terminal to answer on; add --yes")
    if as_json:
        found = checkup(flags, config)
        memory = asdict(found.memory) if found.memory else None
        checks = [asdict(finding) for finding in found.findings]
        typer.echo(json.dumps({"ok": not found.failed, "checks": checks, "memory": memory}, indent=2))
    else:
        found = _check_and_print(flags, config)
        if fix and repair(found.findings, lambda command: _agreed(command, yes)):
            found = _check_and_print(flags, config)
    if found.failed:
        raise typer.Exit(1)


def _check_and_print(flags: Mapping[str, Any], config: str | None) -> "Checkup":
    from esplug.doctor.checkup import checkup

    with get_console().status("checking", spinner="line"):
        found = checkup(flags, config)
    _print(found)
    return found


def _agreed(command: str, yes: bool) -> bool:
    say(command)
    return yes or typer.confirm("Run it?")


def _print(found: "Checkup") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from esplug.doctor.memory_table import memory_table

    table = Table("check", "state", Column("found", overflow="fold"), Column("remedy", overflow="fold"), box=None)
    for finding in found.findings:
        state = Text(finding.state, style=_STYLES[finding.state])
        table.add_row(finding.check, state, Text(finding.found), Text(finding.remedy))
    get_console().print(table)
    if found.memory:
        get_console().print("", memory_table(found.memory))
    states = [finding.state for finding in found.findings]
    counts = {"failure": states.count("fail"), "warning": states.count("warning")}
    words = ", ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in counts.items() if n)
    say(f"training {'cannot' if found.failed else 'can'} work here" + (f" ({words})" if words else ""))

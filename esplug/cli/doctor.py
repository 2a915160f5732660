"""``esplug doctor``: check whether training can work here."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from esplug.cli.options import AsJson, ConfigFile, Debug, with_settings
from esplug.utils.console import get_console, say

if TYPE_CHECKING:
    from esplug.doctor.checkup import Checkup

_STYLES = {"ok": "green", "warning": "yellow", "fail": "bold red"}


@with_settings("train")
def doctor(flags: Mapping[str, Any], as_json: AsJson = False, config: ConfigFile = None, debug: Debug = False) -> None:
    """Check the installation, the machine and the plugins, and whether training with these settings can work here."""
    from esplug.doctor.checkup import checkup

    if as_json:
        found = checkup(flags, config)
        memory = asdict(found.memory) if found.memory else None
        checks = [asdict(finding) for finding in found.findings]
        typer.echo(json.dumps({"ok": not found.failed, "checks": checks, "memory": memory}, indent=2))
    else:
        with get_console().status("checking", spinner="line"):
            found = checkup(flags, config)
        _print(found)
    if found.failed:
        raise typer.Exit(1)


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

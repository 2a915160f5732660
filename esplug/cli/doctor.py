"""``esplug doctor``: check whether training can work here."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esplug.cli.options import ConfigFile, Debug, with_settings

if TYPE_CHECKING:
    from esplug.doctor.checkup import Checkup

_STYLES = {"ok": "green", "warning": "yellow", "fail": "bold red"}


@with_settings("train")
def doctor(
    flags: Mapping[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    config: ConfigFile = None,
    debug: Debug = False,
) -> None:
    """Check the installation, the machine and the plugins, and whether training with these settings can work here."""
    from esplug.doctor.checkup import checkup
    from esplug.utils.console import get_console

    console = get_console()
    if as_json:
        found = checkup(flags, config)
        typer.echo(json.dumps(_record(found), indent=2))
    else:
        with console.status("checking", spinner="line"):
            found = checkup(flags, config)
        _print(found)
    if found.failed:
        raise typer.Exit(1)


def _record(found: "Checkup") -> dict[str, Any]:
    return {
        "ok": not found.failed,
        "checks": [asdict(finding) for finding in found.findings],
        "memory": asdict(found.memory) if found.memory else None,
    }


def _print(found: "Checkup") -> None:
    from rich.table import Column, Table
    from rich.text import Text

    from esplug.doctor.memory_table import memory_table
    from esplug.utils.console import get_console

    console = get_console()
    found_column, remedy_column = Column("found", overflow="fold"), Column("remedy", overflow="fold")
    table = Table("check", "state", found_column, remedy_column, box=None)
    for finding in found.findings:
        state = Text(finding.state, style=_STYLES[finding.state])
        table.add_row(finding.check, state, Text(finding.found), Text(finding.remedy))
    console.print(table)
    if found.memory:
        console.print("", memory_table(found.memory))
    counts = {state: sum(finding.state == state for finding in found.findings) for state in ("fail", "warning")}
    words = [
        f"{n} {what}{'s' * (n > 1)}" for what, n in (("failure", counts["fail"]), ("warning", counts["warning"])) if n
    ]
    console.print(
        "",
        f"{'training cannot work here' if found.failed else 'training can work here'}"
        + (f" ({', '.join(words)})" if words else ""),
    )

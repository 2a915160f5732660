"""Rewrite the tables of docs/settings.md from the configuration, which is where settings are declared."""

from itertools import groupby
from pathlib import Path

from esplug.config import RunConfig, default_of, details_of, flag_of, panel_of

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
START, END = "<!-- settings -->\n", "<!-- /settings -->"


def tables() -> str:
    """Return the tables in Markdown, one for each group of settings."""
    return "\n".join(_table(panel, list(names)) for panel, names in groupby(RunConfig.model_fields, key=panel_of))


def _table(panel: str, names: list[str]) -> str:
    lines = [f"## {panel}", "", "| flag | default | |", "|---|---|---|"]
    for name in names:
        field = RunConfig.model_fields[name]
        text = (field.description or "").partition("  [default: ")[0]
        default = default_of(name) or _plain(field.default)
        cell = f"{text} {details_of(name)}".rstrip().replace("|", " ")
        lines.append(f"| `{flag_of(name)}` | {default} | {cell} |")
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | dict):
        return f"`{','.join(map(str, value))}`" if value else "none"
    return "none" if value is None else f"`{value}`"


def main() -> None:
    """Replace what stands between the markers."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + START + tables() + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()

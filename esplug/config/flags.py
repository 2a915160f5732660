"""Command-line flag and help panel of each setting."""

from esplug.config.fields import Command
from esplug.config.run_config import RunConfig


def flag_of(field: str, command: Command = "train") -> str:
    """Return the command-line flag of a field: ``n_iterations`` -> ``--n-iterations``."""
    own = (command == "eval" and _declared(field, "eval_flag")) or _declared(field, "flag")
    return own or "--" + field.replace("_", "-")


def panel_of(field: str) -> str:
    """Return the group of settings that a field belongs to."""
    return _declared(field, "panel")


def _declared(field: str, key: str) -> str:
    extra = RunConfig.model_fields[field].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra[key] or "")

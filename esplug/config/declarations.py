"""Declarations of the settings: each field's flag, panel, default in words, and details."""

from esplug.config.fields import Command
from esplug.config.run_config import RunConfig


def flag_of(field: str, command: Command = "train") -> str:
    """Return the command-line flag of a field: ``n_iterations`` -> ``--n-iterations``."""
    own = (command == "eval" and _declared(field, "eval_flag")) or _declared(field, "flag")
    return own or "--" + field.replace("_", "-")


def panel_of(field: str) -> str:
    """Return the group of settings that a field belongs to."""
    return _declared(field, "panel")


def default_of(field: str) -> str:
    """Return the words for a default that depends on other settings, such as ``sigma/2``; ``""`` if it does not."""
    return (RunConfig.model_fields[field].description or "").partition("  [default: ")[2].removesuffix("]")


def details_of(field: str) -> str:
    """Return what ``docs/settings.md`` says about a field besides its description."""
    return _declared(field, "details")


def _declared(field: str, key: str) -> str:
    extra = RunConfig.model_fields[field].json_schema_extra
    assert isinstance(extra, dict)
    return str(extra[key] or "")

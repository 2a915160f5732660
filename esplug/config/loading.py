"""Loading of a ``RunConfig``: merges sources, validates, and turns every mistake into one line."""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from esplug.config.declarations import default_of, flag_of
from esplug.config.fields import Command
from esplug.config.run_config import RunConfig
from esplug.config.sources import merge
from esplug.errors import UserError
from esplug.utils.text import brief, cause, suggest

_TYPE_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
_LIMIT_NAMES = {"gt": "greater than", "ge": "at least", "le": "at most"}
_OUT_OF_RANGE = {"finite_number", "greater_than", "greater_than_equal", "less_than_equal"}


def make_config(
    *sources: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, command: Command = "train"
) -> RunConfig:
    """Merge settings as ``esplug.config.sources.merge`` does, and validate them.

    Args:
        sources: settings by field name; later sources override earlier ones.
        defaults: the task's, which every source overrides.
        command: the command whose flags error messages name.

    Raises:
        UserError: one line with the first invalid setting, its value and the valid range.
    """
    merged = merge({str(number): source for number, source in enumerate((defaults or {}, *sources))}).settings
    for key in merged:
        if key not in RunConfig.model_fields:
            unknown = f"unknown setting {brief(repr(key))}"
            raise UserError(f"{unknown}; {suggest(key, RunConfig.model_fields)}".rstrip("; "))
    complete()
    try:
        return RunConfig(**merged)
    except ValidationError as error:
        raise UserError(_described(error, command)) from None


@cache
def complete() -> None:
    """Build the pydantic model, which reads the metadata of every installed package."""
    try:
        RunConfig.model_rebuild()
    except Exception as error:
        raise UserError(
            f"the metadata of an installed package are damaged [{cause(error)}]; `esplug plugins` names it: "
            "reinstall it, or remove it"
        ) from error


def read_toml(path: str) -> dict[str, Any]:
    """Read a configuration file. Dashes in keys become underscores; ``$schema``, which editors use, is dropped.

    Raises:
        UserError: the file is missing or is not TOML.
    """
    try:
        if not Path(path).is_file():  # reading a pipe or device might never end
            raise UserError(f"--config {brief(path)}: {'not a file' if Path(path).exists() else 'No such file'}")
        with open(path, "rb") as file:
            read = tomllib.load(file)
        return {key.replace("-", "_"): value for key, value in read.items() if key != "$schema"}
    except OSError as error:
        raise UserError(f"--config {brief(path)}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {brief(path)}: not a TOML file: {brief(str(error))}") from error


def _described(error: ValidationError, command: Command) -> str:
    """Describe the first error, with flags in place of field names."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # settings that do not go together
        return re.sub(r"<(\w+)>", lambda field: flag_of(field[1], command), message)
    field = str(first["loc"][0])
    message = message if first["type"] == "value_error" else _valid_values(field, first["input"])
    given = str(first["input"]) if first["type"] in _OUT_OF_RANGE else repr(first["input"])
    return f"{flag_of(field, command)} {brief(given)}: {message}"


def _valid_values(field: str, given: object) -> str:
    """Describe the valid values of a setting: ``must be an integer, at least 1, at most 10``."""
    info = RunConfig.model_fields[field]
    types = get_args(info.annotation) or (info.annotation,)
    if get_origin(info.annotation) is Literal:
        return f"must be one of {', '.join(types)}; {suggest(str(given), types)}".removesuffix("; ")
    named = [(name, getattr(part, key, None)) for part in info.metadata for key, name in _LIMIT_NAMES.items()]
    limits = [f"{name} {limit}" for name, limit in named if limit is not None]
    valid = "must be " + ", ".join([next(_TYPE_NAMES[each] for each in types if each in _TYPE_NAMES), *limits])
    unset = default_of(field)
    return f"{valid}; leave it out for the default, {unset}" if unset else valid

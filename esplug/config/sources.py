"""Sources of settings (the task's defaults, a recipe, a resumed run, a file, flags) and their merging."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

Recipe = Literal["paper", "fast"]

#: Settings that work well together; any other source overrides them. ``paper``: the settings of ES-at-Scale (arXiv
#: 2509.24372), which are the fields' own defaults. ``fast``: larger steps that decay over the run.
#: ``benchmarks/learning/README.md`` compares them.
_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {"alpha_schedule": "constant"},
    "fast": {"alpha_schedule": "cosine"},
}

#: Default of alpha, as a multiple of sigma.
STEPS: Mapping[Recipe, float] = {"paper": 0.5, "fast": 2.0}


@dataclass(frozen=True, slots=True)
class MergedSettings:
    """The settings of all sources, merged."""

    settings: dict[str, Any]  #: by field name; settings that no source names are missing
    origins: dict[str, str]  #: for each of these, the name of the source that decides it, such as ``file``
    option_origins: dict[str, dict[str, str]]  #: by name of a table, such as ``task_options``: the same for its keys


def merge(sources: Mapping[str, Mapping[str, Any]]) -> MergedSettings:
    """Merge settings; later sources override earlier ones, and tables such as task options are merged key by key.

    A source that names a recipe replaces alpha and its schedule from earlier sources. One that makes a schedule
    constant, perturbations full, or the patience of early stopping 0, drops the settings that apply only to the other
    choice. ``sources`` maps the name of each source to its settings.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    option_origins: dict[str, dict[str, str]] = {table: {} for table in _TABLES}
    for origin, source in sources.items():
        recipe = _RECIPES.get(str(source.get("recipe")), {})
        given = {**recipe, **source}
        if recipe:
            merged.pop("alpha", None)  # its default is the recipe's multiple of sigma
        for name in ("sigma", "alpha"):
            if given.get(f"{name}_schedule") == "constant":
                merged.pop(f"{name}_end", None)
        if given.get("perturbation") == "full":
            merged.pop("rank", None)
            merged.pop("members_per_batch", None)
        if str(given.get("early_stopping_patience")) == "0":
            merged.pop("early_stopping_metric", None)
            merged.pop("early_stopping_min_delta", None)
        for key, value in given.items():
            if read := _TABLES.get(key):
                with suppress(ValueError):  # validation refuses options that cannot be read
                    options = read(value)
                    option_origins[key] |= dict.fromkeys(options, origin)
                    value = read(merged.get(key, {})) | options
            merged[key] = value
            origins[key] = origin if key in source else f"recipe {source['recipe']}"
    return MergedSettings(merged, {key: origins[key] for key in merged}, option_origins)


def read_options(value: Any) -> dict[str, Any]:
    """Read options from a mapping or from a list of ``key=value``. Raise ``ValueError`` if they are neither."""
    return _read_table(value, str)


def read_json_options(value: Any) -> dict[str, Any]:
    """Read options as :func:`read_options` does. In ``key=value``, a value that is JSON is parsed; any other is text.

    ``True`` and ``False``, as in Python, are also true and false: a template would take their text as true.

    Raises:
        ValueError: they are neither a mapping nor a list, or a value is null or an object, or a list of such.
    """
    options = _read_table(value, _json_or_text)
    for key, option in options.items():
        if not all(isinstance(item, str | int | float) for item in (option if isinstance(option, list) else [option])):
            raise ValueError(f"{key} must be text, a number, true, false, or a list of these")
    return options


def _read_table(value: Any, parse: Callable[[str], Any]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, list | tuple):
        raise ValueError("write it as key=value, or as a table in the file")
    pairs = [str(item).partition("=") for item in value]
    for key, equals, _ in pairs:
        if not equals or not key.strip():
            raise ValueError("write it as key=value")
    return {key.strip(): parse(text) for key, _, text in pairs}


def _json_or_text(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text.lower() if text in ("True", "False") else text, parse_constant=_refuse)
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


#: Settings that are tables, with the functions that read them.
_TABLES: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "task_options": read_options,
    "chat_template_options": read_json_options,
}

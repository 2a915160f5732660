"""Sources of settings (the task's defaults, a recipe, a resumed run, a file, flags) and their merging."""

from collections.abc import Mapping
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
    option_origins: dict[str, str]  #: the same for each task option


def merge(sources: Mapping[str, Mapping[str, Any]]) -> MergedSettings:
    """Merge settings; later sources override earlier ones, and task options are merged one by one.

    A source that names a recipe replaces alpha and its schedule from earlier sources. One that makes a schedule
    constant, or perturbations full, drops the settings that apply only to the other choice. ``sources`` maps the name
    of each source to its settings.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    option_origins: dict[str, str] = {}
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
        for key, value in given.items():
            if key == "task_options":
                with suppress(ValueError):  # validation refuses options that cannot be read
                    options = read_options(value)
                    option_origins |= dict.fromkeys(options, origin)
                    value = read_options(merged.get(key, {})) | options
            merged[key] = value
            origins[key] = origin if key in source else f"recipe {source['recipe']}"
    return MergedSettings(merged, {key: origins[key] for key in merged}, option_origins)


def read_options(value: Any) -> dict[str, Any]:
    """Read task options from a mapping or from a list of ``key=value``. Raise ``ValueError`` if they are neither."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, list | tuple):
        raise ValueError("write task options as key=value, or as a table in the file")
    pairs = [str(item).partition("=") for item in value]
    for key, equals, _ in pairs:
        if not equals or not key.strip():
            raise ValueError("write it as key=value")
    return {key.strip(): text for key, _, text in pairs}

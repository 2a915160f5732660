"""Settings in layers: the task's defaults, a resumed run's, a file, flags; which of them decides each setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esplug.config.recipes import RECIPES


@dataclass(frozen=True, slots=True)
class MergedSettings:
    """What layers come to.

    Attributes:
        settings: by field name; those that no layer names are missing.
        origins: for each of these, the name of the layer that decides it, such as ``file``.
        option_origins: the same for each task option.
    """

    settings: dict[str, Any]
    origins: dict[str, str]
    option_origins: dict[str, str]


def merge(layers: Mapping[str, Mapping[str, Any]]) -> MergedSettings:
    """Merge settings; later layers win.

    Where a layer names a recipe, that decides alpha and its schedule, whatever earlier layers say; where it makes a
    schedule constant, or perturbations full, what was only for others is dropped. Task options are merged one by one.

    Args:
        layers: by name, settings by field name.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    option_origins: dict[str, str] = {}
    for origin, layer in layers.items():
        recipe = RECIPES.get(str(layer.get("recipe")), {})
        said = {**recipe, **layer}
        if recipe:
            merged.pop("alpha", None)  # a multiple of sigma
        for name in ("sigma", "alpha"):
            if said.get(f"{name}_schedule") == "constant":
                merged.pop(f"{name}_end", None)
        if said.get("perturbation") == "full":
            merged.pop("rank", None)
            merged.pop("members_per_batch", None)
        for key, value in said.items():
            if key == "task_options":
                option_origins |= dict.fromkeys(_named(value), origin)
                value = _joined(merged[key], value) if key in merged else value
            merged[key] = value
            origins[key] = origin if key in layer else f"recipe {layer['recipe']}"
    return MergedSettings(merged, {key: origins[key] for key in merged}, option_origins)


def read_options(value: Any) -> dict[str, Any]:
    """Read task options given as a mapping or as texts ``key=value``.

    Raises:
        ValueError: they are neither.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, list | tuple):
        raise ValueError("write task options as key=value, or as a table in the file")
    pairs = [str(item).partition("=") for item in value]
    for key, equals, _ in pairs:
        if not equals or not key.strip():
            raise ValueError("write it as key=value")
    return {key.strip(): text for key, _, text in pairs}


def _joined(earlier: Any, later: Any) -> Any:
    """Let later task options win one by one; what cannot be read is left for validation to refuse."""
    try:
        return read_options(earlier) | read_options(later)
    except ValueError:
        return later


def _named(options: Any) -> list[str]:
    try:
        return list(read_options(options))
    except ValueError:
        return []

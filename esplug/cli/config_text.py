"""A configuration as text for people and editors: TOML with where each value comes from, and its JSON schema."""

import re
from typing import Any

import tomli_w

from esplug.config import RunConfig, complete
from esplug.plugins.task import Task
from esplug.runs.settings import Resolved

_UNSET = re.compile(r"\[default: (.*)\]$")
_COMMENTS_AT = 44  # characters from the left, where a value is not longer
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
#: What a file may hold besides the type that a setting has in the end.
_ALSO: dict[str, list[dict[str, Any]]] = {
    "logging": [{"type": "string"}],
    "eval_splits": [{"type": "string"}],
    "pass_k": [{"type": "integer"}, {"type": "string"}],
    "use_gpus": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}],
}


def annotated_toml(resolved: Resolved) -> str:
    """Write resolved settings as TOML that ``--config`` takes, each with where it comes from.

    That is ``default``, ``task`` (its recommendation), ``recipe NAME``, ``run`` (one that is resumed), ``file`` or
    ``flag``. Settings that have no value stand there as comments.
    """
    merged, values = resolved.merged, resolved.config.model_dump()
    options = values.pop("task_options")
    # Unless somebody says what alpha is, it is the recipe's multiple of sigma.
    origins = ({"alpha": f"recipe {resolved.config.recipe}"} if "recipe" in merged.origins else {}) | merged.origins
    lines = []
    for name, value in values.items():
        origin = origins.get(name, "default")
        if value is None:
            shown = _UNSET.search(RunConfig.model_fields[name].description or "")
            origin, line = f"not set: {shown[1]}" if shown else "not set", f"# {name} ="
        else:
            line = _one_line(name, value)
        lines.append(f"{line:<{_COMMENTS_AT}} # {origin}")
    if options:
        lines += ["", "[task_options]"]
    for name, value in options.items():
        lines.append(f"{_one_line(name, value):<{_COMMENTS_AT}} # {merged.option_origins.get(name, 'default')}")
    return "\n".join(lines) + "\n"


def json_schema(task: Task | None) -> dict[str, Any]:
    """Return the JSON schema of the TOML file.

    Args:
        task: whose options to describe; with ``None``, a file may hold any.
    """
    complete()
    schema = RunConfig.model_json_schema()
    properties: dict[str, Any] = schema["properties"]
    for name, info in properties.items():
        for ours in ("panel", "flag", "eval_flag"):
            info.pop(ours, None)
        # TOML has no null: what is not set is left out.
        kinds = [kind for kind in info.pop("anyOf", []) if kind != {"type": "null"}]
        if info.get("default", 0) is None:
            del info["default"]
        if name in _ALSO and not kinds:
            kinds = [{key: info.pop(key) for key in ("type", "items") if key in info}]
        kinds += _ALSO.get(name, [])
        info |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
    if task is not None:
        properties["task_options"] |= {
            "additionalProperties": False,
            "properties": {
                name: {"type": _TYPES.get(type(value), "string"), "default": value}
                for name, value in task.options.items()
            },
        }
    properties["$schema"] = {"type": "string", "description": "Where this schema is; for editors alone."}
    about = {"title": "esplug", "description": "Settings of `esplug train` and `esplug eval`."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | about


def _one_line(name: str, value: Any) -> str:
    """Write one setting; strings have no ends of lines in them, which TOML escapes."""
    text = tomli_w.dumps({name: value}).rstrip("\n")
    return text.replace("[\n    ", "[").replace(",\n    ", ", ").replace(",\n]", "]")

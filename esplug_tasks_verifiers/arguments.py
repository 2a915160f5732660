"""Arguments of an environment as task options: declared from its configuration class, and read back into it.

A field of the class is an option of the same name, and a field of a nested configuration has its path, such as
``task.tolerance``. An option is a str, int, float or bool. Values of other types are text: JSON, or the text itself
where the field accepts it.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

#: The task's own options. All others are arguments of the environment.
OWN: Mapping[str, Any] = {"env": "", "held_out": 0.1, "max_rows": 0}
_EVAL = "eval."
_SCORING = "task."  # arguments of rewards, which do not know the split of an answer
#: The name of the environment is an option of its own, judge models are refused, and one answer has nothing to stop.
_HIDDEN = ("id", "task.judges", "task.stops")


class _Field(NamedTuple):
    name: str  # in its own configuration
    path: str  # the option
    info: FieldInfo
    value: Any  # the default; PydanticUndefined if it has none


def declared(config_type: type[BaseModel], given: Collection[str]) -> dict[str, Any]:
    """Return the task's own options, the fields of a configuration class, and their defaults.

    Of the options ``eval.FIELD``, it returns those that the user gave; all of them if one of these is unknown, so that
    esplug can suggest the nearest. A field of the tasks' configuration has none.
    """
    fields = {leaf.path: _option(leaf) for leaf in _leaves(config_type, None, "") if leaf.path not in OWN}
    for_eval = {_EVAL + name: default for name, default in fields.items() if not name.startswith(_SCORING)}
    wanted = {name for name in given if name.startswith(_EVAL)}
    chosen = wanted if wanted <= for_eval.keys() else for_eval.keys()
    return dict(OWN) | fields | {name: default for name, default in for_eval.items() if name in chosen}


def of_split(options: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the environment's arguments for ``train`` or ``eval``."""
    fields = {name: value for name, value in options.items() if name not in OWN and not name.startswith(_EVAL)}
    return fields | for_eval(options) if split == "eval" else fields


def for_eval(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the user gave for the evaluation rows only."""
    return {name.removeprefix(_EVAL): value for name, value in options.items() if name.startswith(_EVAL)}


def config(config_type: type[BaseModel], name: str, arguments: Mapping[str, Any]) -> Any:
    """Return the configuration of environment ``name``, validated by its class.

    Raises:
        ValueError: an argument is missing or invalid.
    """
    try:
        return _validated(config_type, {"id": name} | _filled(config_type, None, "", arguments), "")
    except ValueError as error:
        raise ValueError(f"environment {name!r} {error}") from error


def _validated(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> BaseModel:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = prefix + ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise ValueError(f"needs --task-option {path}=VALUE") from error
        raise ValueError(f"does not take its arguments [{path}: {first['msg']}]") from error


def _leaves(model: type[BaseModel], default: BaseModel | None, prefix: str) -> Iterator[_Field]:
    """Yield the fields of a configuration class that are no configurations themselves."""
    for field in _fields(model, default, prefix):
        if isinstance(field.value, BaseModel):
            yield from _leaves(type(field.value), field.value, f"{field.path}.")
        else:
            yield field


def _fields(model: type[BaseModel], default: BaseModel | None, prefix: str) -> Iterator[_Field]:
    for name, info in model.model_fields.items():
        path = prefix + name
        if path in _HIDDEN:
            continue
        if default is not None:
            value = getattr(default, name)
        elif info.default_factory_takes_validated_data:
            value = PydanticUndefined
        else:
            value = info.get_default(call_default_factory=True)
        yield _Field(name, path, info, value)


def _option(field: _Field) -> str | int | float | bool:
    """Return the default as an option: a number or bool if the field takes nothing else, otherwise text."""
    kind = field.info.annotation
    if kind in (int, float, bool) and isinstance(field.value, int | float):
        return kind(field.value)
    if field.value is PydanticUndefined:
        return ""
    plain = to_jsonable_python(field.value, fallback=str)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _filled(
    model: type[BaseModel], default: BaseModel | None, prefix: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields that ``default`` sets, and those whose options differ from their defaults."""
    set_before = default.model_fields_set if default is not None else set()
    values: dict[str, Any] = {name: getattr(default, name) for name in set_before}
    for field in _fields(model, default, prefix):
        if isinstance(field.value, BaseModel):
            kind, path = type(field.value), f"{field.path}."
            if any(_differs(leaf, arguments) for leaf in _leaves(kind, field.value, path)):
                values[field.name] = _validated(kind, _filled(kind, field.value, path, arguments), path)
        elif _differs(field, arguments):
            values[field.name] = _parsed(field.info, arguments[field.path])
    return values


def _differs(field: _Field, arguments: Mapping[str, Any]) -> bool:
    default = _option(field)
    return bool(arguments.get(field.path, default) != default)


def _parsed(info: FieldInfo, given: Any) -> Any:
    """Read text as the field does: as it is, or as JSON. What it accepts in neither form is left to its validation."""
    if not isinstance(given, str):
        return given
    accepts: TypeAdapter[Any] = TypeAdapter(info.annotation or Any)
    for read in (str, json.loads):
        try:
            value = read(given)
            accepts.validate_python(value)
        except ValueError:  # of JSON and of pydantic
            continue
        return value
    return given

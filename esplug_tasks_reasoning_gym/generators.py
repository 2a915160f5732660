"""Generators of the library: their names, options and instances. Importing the library takes seconds."""

import dataclasses
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache, lru_cache, partial
from typing import Any, get_type_hints

#: Option of every generator with a curriculum: the library's level of difficulty; -1 for the generator's own defaults.
LEVEL, NO_LEVEL = "level", -1
#: Fields that the task sets for all generators.
_OURS = ("seed", "size")
#: The library's own mixture, which the option ``name`` replaces.
_MIXTURE = "composite"


@cache
def names() -> tuple[str, ...]:
    """Return the names of all generators, sorted."""
    return tuple(sorted(set(_registry().DATASETS) - {_MIXTURE}))


def check_name(name: str) -> None:
    """Raise ``ValueError`` if there is no generator of this name."""
    if name == _MIXTURE:
        raise ValueError(f"{name} is the library's own mixture; name its generators instead, as in chain_sum:2,gcd:1")
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no generator {name!r}; {hint}`esplug data list --task reasoning-gym` lists them")


@cache
def options(name: str) -> tuple[str, ...]:
    """Return the names of a generator's options: the fields of its configuration class, and the level."""
    fields = [field.name for field in dataclasses.fields(_configuration_class(name)) if field.name not in _OURS]
    return (*fields, LEVEL) if levels(name) else tuple(fields)


def levels(name: str) -> int:
    """Return the number of levels of a generator's curriculum, or 0 if it has none."""
    curriculum = _registry().CURRICULA.get(name)
    return max((len(each.levels) for each in curriculum().attributes.values()), default=0) if curriculum else 0


def default(name: str, option: str) -> str | int | float | bool:
    """Return an option's default in the type in which users give it: lists and the like as text in JSON."""
    if option == LEVEL:
        return NO_LEVEL
    value, kind = getattr(_configuration_class(name)(), option), _type(name, option)
    if kind in (bool, int, float, str):
        return kind(value)  # type: ignore[no-any-return]
    return str(_adapter(kind).dump_json(value), "utf-8")


def configuration(name: str, given: Iterable[tuple[str, Any]], seed: int, size: int) -> Any:
    """Make a generator's configuration.

    Args:
        name: of the generator.
        given: names and values of options: text, or the type that :func:`default` returns.
        seed: of the generator.
        size: number of rows that it can make.

    Raises:
        ValueError: a value has the wrong type, or the configuration's own ``validate`` rejects the options.
    """
    values = {option: _parsed(f"{name}.{option}", _type(name, option), value) for option, value in given}
    level = values.pop(LEVEL, NO_LEVEL)
    made = _configuration_class(name)() if level == NO_LEVEL else _at_level(name, level)
    made = dataclasses.replace(made, **values, seed=seed, size=size)
    try:
        getattr(made, "validate", bool)()  # a few have none
    except Exception as error:  # mostly AssertionError, often without a message
        given_text = ", ".join(f"{option}={value}" for option, value in given) or "its defaults"
        raise ValueError(f"{name} rejects {given_text}: {str(error) or 'the options do not fit together'}") from error
    return made


@lru_cache(maxsize=256)
def instance(name: str, given: tuple[tuple[str, Any], ...], seed: int = 0, size: int = 1) -> Any:
    """Return a generator, which makes rows and grades answers. See :func:`configuration` for the arguments."""
    return _registry().DATASETS[name][0](config=configuration(name, given, seed, size))


@cache
def _registry() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of its dependencies, when they are first compiled
        import reasoning_gym.factory

    return reasoning_gym.factory


def _configuration_class(name: str) -> Any:
    return _registry().DATASETS[name][1]


def _at_level(name: str, level: int) -> Any:
    if not 0 <= level < levels(name):
        raise ValueError(f"{name}.{LEVEL} must be between 0 and {levels(name) - 1}, not {level}")
    curriculum = _registry().CURRICULA[name]()
    curriculum.set_global_level(level)
    return curriculum.generate_configuration()


@cache
def _type(name: str, option: str) -> Any:
    """Return the type of an option: its annotation or, if the library's own default contradicts that, the default's."""
    from pydantic import ValidationError

    if option == LEVEL:
        return int
    kind = _configuration_class(name)
    annotated, value = get_type_hints(kind)[option], getattr(kind(), option)
    try:
        _adapter(annotated).validate_python(value)
    except ValidationError:
        return type(value)
    return annotated


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _parsed(spelled: str, kind: Any, value: Any) -> Any:
    """Convert a value to the type of its option. Text may be the value itself, or JSON."""
    from pydantic import ValidationError

    attempts = [partial(_adapter(kind).validate_python, value)]
    if isinstance(value, str):  # null is never text
        attempts.insert(0 if value == "null" else 1, partial(_adapter(kind).validate_json, value))
    fault = ""
    for attempt in attempts:
        try:
            return attempt()
        except ValidationError as error:
            fault = fault or error.errors()[0]["msg"]
    shown = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__origin__") else str(kind)
    raise ValueError(f"option {spelled} must be {shown.replace('typing.', '')}, not {value!r} ({fault})")

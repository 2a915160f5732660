"""Selection: the generators that the option ``name`` selects, with their weights and options."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from esplug_tasks_reasoning_gym import generators

#: Name of the option that selects generators, and its value for all of them.
NAME, ALL = "name", "all"


@dataclass(frozen=True, slots=True)
class Choice:
    """One generator, with its weight in the training rows and the options that the user set, by name."""

    name: str
    weight: float
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The chosen generators, in the user's order.

    Attributes:
        choices: the generators.
        spelling: the generator and its option for each option as the user spells it.
    """

    choices: tuple[Choice, ...]
    spelling: tuple[tuple[str, tuple[str, str]], ...]

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, text: str, options: tuple[tuple[str, Any], ...]) -> "Selection":
        """Parse ``chain_sum``, ``chain_sum,gcd`` or ``chain_sum:2,gcd:1``, and assign the options to generators.

        Args:
            text: value of the option ``name``.
            options: names and values of all options that are not the task's own, as ``chain_sum.min_terms`` or, for a
                single generator, ``min_terms``.

        Raises:
            ValueError: a generator does not exist or is given twice, a weight is not a positive number, or an option
                belongs to none of the generators.
        """
        weights = dict(_weights(text))
        spelling = {spelled: _owner(spelled, list(weights)) for spelled, _ in options}
        if len(set(spelling.values())) < len(spelling):
            raise ValueError(f"an option of {text} is given twice, with and without the generator's name")
        values = {spelling[spelled]: value for spelled, value in options}
        choices = (
            Choice(name, weight, tuple((option, v) for (owner, option), v in values.items() if owner == name))
            for name, weight in weights.items()
        )
        return cls(tuple(choices), tuple(spelling.items()))

    def declared(self) -> Mapping[str, Any]:
        """Return the default of each generator's option that the user set, by the user's spelling."""
        return {spelled: generators.default(*owner) for spelled, owner in self.spelling}

    def load(self) -> None:
        """Load the generators and their data. Raise ``ValueError`` if one of them rejects its options."""
        for choice in self.choices:
            generators.instance(choice.name, choice.options)

    def __getitem__(self, name: str) -> Choice:
        return next(choice for choice in self.choices if choice.name == name)


def _weights(text: str) -> Iterator[tuple[str, float]]:
    if text.strip() == ALL:
        yield from ((name, 1.0) for name in generators.names())
        return
    seen = set()
    for part in text.split(","):
        name, colon, weight = (each.strip() for each in part.partition(":"))
        generators.check_name(name)
        if name in seen:
            raise ValueError(f"{NAME} {text!r} holds {name} twice; give it once, with a weight such as {name}:2")
        seen.add(name)
        yield name, _number(weight, part) if colon else 1.0


def _number(weight: str, part: str) -> float:
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{NAME}: the weight in {part.strip()!r} must be a positive number, as in chain_sum:2")
    return number


def _owner(spelled: str, names: list[str]) -> tuple[str, str]:
    """Return the generator and its option for an option as the user spells it."""
    name, dot, option = spelled.partition(".")
    if not dot and len(names) == 1:
        name, option = names[0], spelled
    elif not dot:
        owners = [each for each in names if spelled in generators.options(each)]
        near = get_close_matches(spelled, [option for each in names for option in generators.options(each)], n=1)
        hint = f"write {owners[0]}.{spelled}" if owners else f"did you mean {near[0]!r}?" if near else "leave it out"
        raise ValueError(f"option {spelled!r} does not say which of the generators it is for; {hint}")
    elif name not in names:
        raise ValueError(
            f"option {spelled!r}: {name!r} is not in {NAME}={','.join(names[:5])}; add it, or leave it out"
        )
    known = generators.options(name)
    if option not in known:
        near = get_close_matches(option, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{name} has no option {option!r}; {hint}(its options: {', '.join(known)})")
    return name, option

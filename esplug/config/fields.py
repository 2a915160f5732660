"""Field declarations for ``RunConfig``: a default, a description for ``--help``, a help panel, and limits."""

from typing import Any, Literal

from pydantic import Field

Command = Literal["train", "eval"]

#: Panels of the help, and groups of the tables in ``docs/settings.md``.
TASK = "Task"
MODEL = "Model"
ES = "Evolution Strategies"
GENERATION = "Generation"
EVALUATION = "Evaluation"
ENGINES = "Engines"
OUTPUT = "Output"

_MAX_COUNT = 1_000_000_000  # more than anyone needs, and within the range of every library


def setting(
    default: Any, description: str, panel: str, *, flag: str | None = None, eval_flag: str | None = None, **limits: Any
) -> Any:
    """Declare a setting.

    Args:
        default: the value if no source gives one.
        description: shown by ``--help``. A default that depends on other settings is appended as
            ``"  [default: ...]"``.
        panel: the group that the setting belongs to.
        flag: the flag, if it is not the field's name with dashes.
        eval_flag: the flag of `esplug eval`, if it differs.
        limits: of pydantic's ``Field``, such as ``ge=1``.
    """
    extra: dict[str, Any] = {"panel": panel, "flag": flag, "eval_flag": eval_flag}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def number(default: Any, description: str, panel: str, **limits: Any) -> Any:
    """Declare a setting that is a finite float."""
    return setting(default, description, panel, allow_inf_nan=False, **limits)


def count(default: Any, description: str, panel: str, **limits: Any) -> Any:
    """Declare a setting that is an integer of at most 10^9."""
    return setting(default, description, panel, le=_MAX_COUNT, **limits)

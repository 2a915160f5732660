"""Field declarations for ``RunConfig``: a default, a description for ``--help``, a help panel, and limits."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

Command = Literal["train", "eval"]

_MAX_COUNT = 1_000_000_000  # more than anyone needs, and within the range of every library


@dataclass(frozen=True)
class Panel:
    """A panel of the help, which is also a group of the tables in ``docs/settings.md``."""

    title: str

    def setting(
        self,
        default: Any,
        description: str,
        *,
        details: str | None = None,
        flag: str | None = None,
        eval_flag: str | None = None,
        **limits: Any,
    ) -> Any:
        """Declare a setting in this panel.

        Args:
            default: the value if no source gives one.
            description: shown by ``--help``, where it must fit three lines of a narrow terminal; ends in
                ``"  [default: ...]"`` if that depends on other settings.
            details: further sentences, which only ``docs/settings.md`` shows.
            flag: the flag, if it is not the field's name with dashes.
            eval_flag: the flag of `esplug eval`, if it differs.
            limits: of pydantic's ``Field``, such as ``ge=1``.
        """
        extra: dict[str, Any] = {"panel": self.title, "details": details, "flag": flag, "eval_flag": eval_flag}
        return Field(default, description=description, json_schema_extra=extra, **limits)

    def number(self, default: Any, description: str, **limits: Any) -> Any:
        """Declare a setting that is a finite float."""
        return self.setting(default, description, allow_inf_nan=False, **limits)

    def count(self, default: Any, description: str, **limits: Any) -> Any:
        """Declare a setting that is an integer of at most 10^9."""
        return self.setting(default, description, le=_MAX_COUNT, **limits)


TASK, MODEL, ES = Panel("Task"), Panel("Model"), Panel("Evolution Strategies")
GENERATION, EVALUATION, ENGINES, OUTPUT = Panel("Generation"), Panel("Evaluation"), Panel("Engines"), Panel("Output")

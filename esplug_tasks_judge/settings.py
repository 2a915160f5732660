"""Settings of the judge: the task's options, checked."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from esplug_tasks_judge.prompts import PLACEHOLDERS, placeholders

SCALES = ("yes-no", "number", "choice")
RUBRIC = """Prompt: {prompt}

Answer:
{answer}

Is this a correct, clear and complete answer to the prompt? Reply with yes or no."""

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_KEY = re.compile(r"[!-~]+")  # anything else is no valid header, and the error about it would show the key
_LIMITS = {
    "timeout": (0.1, 3600.0),
    "outage": (0.0, 43200.0),
    "requests_per_minute": (0.0, 1e6),
    "max_characters": (100, 1_000_000),
    "judge_tokens": (0, 100_000),
    "unreadable": (0.0, 1.0),
    "price_in": (0.0, 1e6),
    "price_out": (0.0, 1e6),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a run, with their defaults."""

    model: str = ""  #: the judge's name at the endpoint; required
    base_url: str = "http://localhost:8000/v1"  #: of an OpenAI-compatible endpoint
    api_key_env: str = ""  #: name of the environment variable that holds the API key; empty for none
    rubric: str = RUBRIC  #: what the judge is asked, with the placeholders of :mod:`.prompts`
    scale: str = "yes-no"  #: how the score is read from the reply: one of ``SCALES``
    low: float = 0.0  #: the number that earns 0, with ``scale=number``
    high: float = 10.0  #: the number that earns 1
    choices: str = ""  #: ``label=reward`` pairs, separated by commas, with ``scale=choice``
    judge_tokens: int = 0  #: longest reply, in tokens; 0 for 1 with ``scale=yes-no`` and 16 otherwise
    extra: str = ""  #: JSON object with further fields of the request
    fence: bool = True  #: whether the answer stands between markers, with a warning to the judge
    max_characters: int = 8000  #: longest answer that is sent whole
    unreadable: float = 0.0  #: reward of an answer that the judge refuses or whose score cannot be read
    timeout: float = 60.0  #: seconds that one request may take
    outage: float = 600.0  #: seconds to wait for an endpoint that does not reply, before the run stops
    requests_per_minute: float = 0.0  #: limit of all grading processes of this user together; 0 for none
    price_in: float = 0.0  #: price of a million tokens that the judge reads
    price_out: float = 0.0  #: price of a million tokens that the judge writes
    cache: str = ""  #: folder of the cache; empty for ``esplug-judge`` in the user's cache folder
    prompt_column: str = "prompt"
    reference_column: str = "reference"
    chat: bool = True  #: whether the prompt is a chat message, rather than a text to continue

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Check the options.

        Raises:
            ValueError: one of them is invalid.
        """
        settings = cls(**{field.name: options[field.name] for field in fields(cls)})
        settings._check()
        return settings

    def _check(self) -> None:
        if not self.model.strip():
            raise ValueError("the judge's model is missing; name it with --task-option model=NAME")
        try:
            url = urlsplit(self.base_url)
            valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # of the port
            valid = False
        if not valid:
            raise ValueError("base_url must be an http or https address, such as http://localhost:8000/v1")
        if url.username or url.password or url.query:
            raise ValueError("base_url is recorded, so it must not hold a password or query; use api_key_env")
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):  # the value may be a key, so it is not shown
            raise ValueError("api_key_env must name an environment variable in upper case; never give the key itself")
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ValueError(f"the environment variable {self.api_key_env} is not set; export the API key in it")
        if self.api_key_env and not _KEY.fullmatch(os.environ[self.api_key_env]):
            raise ValueError(
                f"the environment variable {self.api_key_env} must hold only the API key, "
                "without spaces, line breaks or letters outside ASCII"
            )
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, not {self.scale!r}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low and high must be numbers with low < high, not {self.low} and {self.high}")
        for name, (least, most) in _LIMITS.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be between {least:g} and {most:g}, not {getattr(self, name)}")
        unknown = placeholders(self.rubric) - set(PLACEHOLDERS)
        if unknown or "answer" not in placeholders(self.rubric):
            fault = f"has the unknown placeholder {{{min(unknown)}}}" if unknown else "lacks the placeholder {answer}"
            raise ValueError(f"the rubric {fault}; it can use {{prompt}}, {{answer}} and {{reference}}")
        self.labels  # noqa: B018 - raises
        self.extra_fields  # noqa: B018 - raises

    @property
    def needs_reference(self) -> bool:
        """Whether rows need the column of references."""
        return "reference" in placeholders(self.rubric)

    @property
    def labels(self) -> dict[str, float]:
        """The choices, in lower case, with their rewards. Raises ``ValueError``."""
        if self.scale != "choice":
            return {}
        labels: dict[str, float] = {}
        for pair in self.choices.split(","):
            label, _, reward = pair.rpartition("=")
            try:
                value = float(reward)
            except ValueError:
                value = math.nan
            if not label.strip() or not 0 <= value <= 1 or label.strip().lower() in labels:
                raise ValueError(f"choices must be like good=1,fair=0.5,poor=0 (rewards from 0 to 1); {pair!r} is not")
            labels[label.strip().lower()] = value
        return labels

    @property
    def extra_fields(self) -> dict[str, Any]:
        """Further fields of the request. Raises ``ValueError``."""
        try:
            found = json.loads(self.extra or "{}")
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                'extra must be a JSON object, such as {"chat_template_kwargs": {"enable_thinking": false}}'
            )
        return found

    @property
    def folder(self) -> Path:
        """Folder of the cache."""
        default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "esplug-judge"
        return (Path(self.cache) if self.cache else default).expanduser().absolute()

"""Judge task: a model behind an OpenAI-compatible endpoint gives the rewards.

esplug calls the hooks in the order in which they appear here. The reward is asynchronous: each grading process waits
for many replies at a time. :mod:`.judging` grades one answer.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from esplug import Reward, hookimpl
from esplug_tasks_judge import topics
from esplug_tasks_judge.settings import Settings

CONCURRENCY = 32  # requests at a time, unless the user sets --reward-concurrency


@hookimpl
def options() -> Mapping[str, Any]:
    """Declare the options: the fields of :class:`.settings.Settings`."""
    return asdict(Settings())


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask for many answers at once, with time for two requests, an outage during each, and the wait for a turn."""
    settings = Settings.of(options)
    turn = CONCURRENCY * 60 / settings.requests_per_minute if settings.requests_per_minute else 0
    limit = 2 * (settings.timeout + settings.outage + turn) + 60
    return {"reward_concurrency": CONCURRENCY, "reward_function_timeout": min(limit, 86400.0), "max_tokens": 256}


@hookimpl
def load_rows(split: str, path: str | None) -> Any:
    """Return the task's own topics, unless the user named a data set, which esplug reads."""
    if path is not None:
        return None
    return topics.rows(split) if split == "train" else {"topics": topics.rows(split)}


@hookimpl
def collate(batch: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> tuple[list[str], list[dict[str, str]]]:
    """Prompt with the row's prompt. The judge sees the prompt and, if the rubric uses it, the reference."""
    settings = Settings.of(options)
    targets = []
    for row in batch:
        target = {"prompt": _text(row, settings.prompt_column)}
        if settings.needs_reference:
            target["reference"] = _text(row, settings.reference_column)
        targets.append(target)
    return [target["prompt"] for target in targets], targets


@hookimpl
def template(question: str, options: Mapping[str, Any]) -> str | list[dict[str, str]]:
    """Return a chat message, or the text itself with ``chat=false``."""
    return [{"role": "user", "content": question}] if options["chat"] else question


@hookimpl
async def reward(model_output: str, target: Mapping[str, str], options: Mapping[str, Any]) -> Reward:
    """Return the judge's score, from 0 to 1."""
    from esplug_tasks_judge.judging import judge

    judges = judge(Settings.of(options), asyncio.get_running_loop())
    return await judges.reward(model_output, target["prompt"], target.get("reference", ""))


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, str | int | float):
        raise ValueError(f"column {column!r}: {value!r} is not text")
    return str(value)

"""Prompts of an environment: the chat messages that it sends to a model before the answer."""

from collections.abc import Mapping
from typing import Any

import verifiers.v1 as vf
from pydantic import ValidationError

from esplug_tasks_verifiers import refusals
from esplug_tasks_verifiers.environment import Environment


def chat(environment: Environment, row: Mapping[str, Any], number: int) -> list[dict[str, str]]:
    """Return the messages of a row: system prompt, examples as earlier turns, and the question.

    Raises:
        ValueError: the row is no data of the environment, or its prompt is more than text.
    """
    try:
        data = environment.data_type.model_validate(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"row {number} is no {environment.data_type.__name__} of environment {environment.name!r}"
        raise ValueError(f"{fault} [{'.'.join(map(str, first['loc']))}: {first['msg']}]") from error
    refusals.check_data(environment.name, data, number)
    prompt = messages(data)
    for message in prompt:
        refusals.check_message(environment.name, message, number)
    return [{"role": message.role, "content": _text(message)} for message in prompt]


def messages(data: vf.TaskData) -> list[vf.Message]:
    """Return the messages as verifiers represents them. A system prompt precedes those of the prompt."""
    system = [vf.SystemMessage(content=data.system_prompt)] if data.system_prompt else []
    if isinstance(data.prompt, str):
        return [*system, vf.UserMessage(content=data.prompt)]
    return [*system, *(data.prompt or [])]


def _text(message: vf.Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content if isinstance(part, vf.TextContentPart))
    return message.content or ""

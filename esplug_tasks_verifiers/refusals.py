"""Refusals: environments that need more than one answer of one model, by name and reason."""

import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

import verifiers.v1 as vf
from pydantic import BaseModel

_Hooks = Callable[[str], list[Callable[..., Any]]]


def check_class(name: str, taskset: type[vf.Taskset]) -> None:
    """Check what the classes of an environment need.

    Raises:
        ValueError: several turns or agents, a program around the model, or a container.
    """
    env, task = vf.environment_class(name), taskset.task_type()
    if env is not vf.SingleAgentEnv:
        raise _refusal(name, f"has several turns or agents ({env.__name__})")
    if vf.default_harness_id(name) == name:
        raise _refusal(name, "runs the model in a program of its own (a Harness)")
    if task is vf.Task:
        raise ValueError(f"environment {name!r} has no reward: {taskset.__name__} names no Task class")
    if task.NEEDS_CONTAINER:
        raise _refusal(name, f"needs a sandbox ({task.__name__}.NEEDS_CONTAINER)")


def check_config(name: str, taskset: type[vf.Taskset], config: vf.TasksetConfig, hooks: _Hooks) -> None:
    """Check what an environment needs with these arguments.

    Args:
        name: of the environment, for messages.
        taskset: its class.
        config: its arguments.
        hooks: returns its reward functions (``reward``) or metrics (``metric``).

    Raises:
        ValueError: tools, a sandbox, a judge model, or changes of messages; or it has no reward function.
    """
    task = taskset.task_type()
    if tools := [*taskset.toolsets(config), *task.toolsets(config.task)]:
        raise _refusal(name, f"gives the model tools ({_names(map(type, tools))})")
    scoring = hooks("reward") + hooks("metric")
    prepare = [hook for hook in (task.setup, task.finalize) if hook not in (vf.Task.setup, vf.Task.finalize)]
    if boxed := [function for function in (*prepare, *scoring) if _needs_runtime(function)]:
        raise _refusal(name, f"needs a sandbox ({_names(boxed)} takes a runtime)")
    if judges := [*_judge_configs(config), *_judges_in(task, scoring)]:
        raise _refusal(name, f"asks a judge model ({_names(judges)})")
    if changes := [method for method in _methods(task) if getattr(method, "intercept", False)]:
        raise _refusal(name, f"changes messages between the model and the environment ({_names(changes)})")
    if not hooks("reward"):
        raise ValueError(f"environment {name!r} has no reward: {task.__name__} has no method with @vf.reward")


def check_data(name: str, data: vf.TaskData, number: int) -> None:
    """Check what one row needs.

    Raises:
        ValueError: a sandbox, or a user who begins the conversation.
    """
    boxed = [field for field in ("image", "agent_user", "skills", "artifacts") if getattr(data, field)]
    if boxed:
        raise _refusal(name, f"needs a sandbox ({', '.join(boxed)} of row {number})")
    if not data.prompt:
        raise _refusal(name, f"waits for a user to begin the conversation (row {number} has no prompt)")


def check_message(name: str, message: vf.Message, number: int) -> None:
    """Check that a message of a prompt is text.

    Raises:
        ValueError: it has images, tool calls or separate reasoning.
    """
    content = message.content if isinstance(message.content, list) else []
    if isinstance(message, vf.ToolMessage) or getattr(message, "tool_calls", None):
        raise _refusal(name, f"has tool calls in its prompts (row {number})")
    if any(not isinstance(part, vf.TextContentPart) for part in content):
        raise _refusal(name, f"has images in its prompts (row {number})")
    if getattr(message, "reasoning_content", None) or getattr(message, "provider_state", None):
        raise _refusal(name, f"has separate reasoning in its prompts (row {number})")


def _refusal(name: str, reason: str) -> ValueError:
    return ValueError(
        f"environment {name!r} {reason}, but this task takes one text answer to each prompt; choose an environment "
        "without tools, sandbox, judge model or further turns"
    )


def _needs_runtime(function: Callable[..., Any]) -> bool:
    parameter = inspect.signature(function).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _judge_configs(config: BaseModel) -> Iterator[type]:
    for _, value in config:
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, vf.JudgeConfig):
                yield type(each)
            elif isinstance(each, BaseModel):
                yield from _judge_configs(each)


def _judges_in(task: type[vf.Task], scoring: list[Callable[..., Any]]) -> Iterator[type]:
    """Yield the judge classes that the methods of a task or its reward functions name."""
    for function in map(inspect.unwrap, [*_methods(task), *scoring]):
        if isinstance(function, FunctionType):
            for name in _names_in(function.__code__):
                found = function.__globals__.get(name, getattr(vf, name, None))
                if isinstance(found, type) and issubclass(found, vf.Judge):
                    yield found


def _methods(task: type[vf.Task]) -> list[Any]:
    """Return what the classes of a task define, without those of verifiers itself."""
    return [value for owner in task.__mro__ if not issubclass(vf.Task, owner) for value in vars(owner).values()]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _names(objects: Any) -> str:
    return ", ".join(dict.fromkeys(each.__name__ for each in objects))

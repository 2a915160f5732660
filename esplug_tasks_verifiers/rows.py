"""Rows of an environment: the data of its tasks, split into training and held-out rows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, TypeAlias

import verifiers.v1 as vf

from esplug_tasks_verifiers import refusals
from esplug_tasks_verifiers.environment import Environment, cause

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The two parts of the rows. No row is in both."""

    train: list[Row]
    held_out: list[Row]


def split(environment: Environment, evaluation: Environment | None, max_rows: int, held_out: float) -> Parts:
    """Return the rows of an environment. Training rows that equal a held-out row are left out.

    Args:
        environment: with the arguments of the training rows.
        evaluation: with the arguments of the held-out rows; ``None`` to hold out some of the training rows. Their
            hashes decide which, so that equal rows stay together, and new rows do not reshuffle the others.
        max_rows: rows to read from each; 0 for all.
        held_out: rows to hold out, as a share if below 1, or else as a number.

    Raises:
        ValueError: the environment cannot load its tasks or needs more than it may, or no rows are left for training.
    """
    rows = _load(environment, max_rows)
    if evaluation is not None:
        held = _load(evaluation, max_rows)
        keys = {key for key, _ in held}
    else:
        keys = _lowest({key for key, _ in rows}, held_out)
        held = [(key, row) for key, row in rows if key in keys]
    train = [row for key, row in rows if key not in keys]
    if not train:
        fault = f"all {len(rows)} rows of environment {environment.name!r} are held out for evaluation"
        raise ValueError(f"{fault}; lower held_out, or change an eval.ARGUMENT")
    return Parts(train, [row for _, row in held])


def _lowest(keys: set[str], held_out: float) -> set[str]:
    if held_out < 0 or (held_out > 1 and held_out != int(held_out)):
        raise ValueError(f"held_out must be a share below 1 or a number of rows, not {held_out:g}")
    count = int(held_out) if held_out >= 1 else max(round(held_out * len(keys)), int(held_out > 0))
    return set(sorted(keys)[:count])


@cache
def _load(environment: Environment, max_rows: int) -> list[tuple[str, Row]]:
    """Return rows with their keys, which are equal for rows that differ only in their index."""
    name = environment.name
    if max_rows < 0:
        raise ValueError(f"max_rows must be 0 or more, not {max_rows}")
    if environment.taskset_type.INFINITE and not max_rows:
        raise ValueError(f"environment {name!r} has no end; limit it with --task-option max_rows=N")
    try:
        taskset = vf.load_taskset(environment.config)
        tasks = list(taskset.take(max_rows) if max_rows else taskset)
    except Exception as error:
        raise ValueError(f"environment {name!r} cannot load its tasks [{cause(error)}]") from error
    if not tasks:
        raise ValueError(f"environment {name!r} has no tasks with these arguments")
    return [_keyed(environment, task, number) for number, task in enumerate(tasks, start=1)]


def _keyed(environment: Environment, task: vf.Task, number: int) -> tuple[str, Row]:
    name, data = environment.name, task.data
    refusals.check_data(name, data, number)
    if type(task) is not environment.task_type or type(data) is not environment.data_type:
        fault = f"task {number} of environment {name!r} is a {type(task).__name__} with {type(data).__name__}"
        raise ValueError(f"{fault}; its Taskset declares {environment.task_type.__name__}")
    shared = environment.config.task
    own = [field for field in type(task.config).model_fields if _field(task.config, field) != _field(shared, field)]
    if own:
        fault = f"task {number} of environment {name!r} has another {own[0]} than the argument task.{own[0]}"
        raise ValueError(f"{fault}; its Taskset must give self.config.task to every task")
    row = data.model_dump(mode="json", include=set(_changed(data)))
    if environment.data_type.model_validate(row) != data:
        fault = f"the data of task {number} of environment {name!r} changes when it is written as JSON"
        raise ValueError(f"{fault}; {type(data).__name__} needs fields that JSON keeps")
    content = json.dumps({field: value for field, value in row.items() if field != "idx"}, sort_keys=True)
    return blake2b(content.encode(errors="replace"), digest_size=16).hexdigest(), row


def _field(config: vf.TaskConfig, field: str) -> Any:
    return getattr(config, field, None)


def _changed(data: vf.TaskData) -> Iterator[str]:
    """Yield the fields that differ from their defaults. Leaving out the others keeps logged samples short."""
    for field, info in type(data).model_fields.items():
        simple = not info.default_factory_takes_validated_data
        if not simple or getattr(data, field) != info.get_default(call_default_factory=True):
            yield field

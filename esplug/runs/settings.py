"""From what the user typed to the settings of a run: file, flags, a resumed run's own, and the task's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.config import Command, RunConfig, make_config, read_toml
from esplug.config.sources import MergedSettings, merge
from esplug.plugins.task import Task


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, the task they name, and where each comes from: layers ``task``, ``run``, ``file`` and ``flag``."""

    config: RunConfig
    task: Task
    merged: MergedSettings


def resolve(flags: Mapping[str, Any], config_file: str | None, command: Command, resume: Path | None) -> Resolved:
    """Resolve the configuration, of a run to be resumed if there is one, and load the task.

    Args:
        flags: what was typed, by field name.
        config_file: a TOML file.
        command: whose flags errors name.
        resume: directory of a run.

    Raises:
        UserError: a setting, the file, the run or the task is not as it must be.
    """
    file = read_toml(config_file) if config_file else {}
    before: Mapping[str, Any] = {}
    if resume:
        from esplug.runs.resume import inherited

        before = inherited(resume, {**file, **flags})
    layers = {"run": before, "file": file, "flag": flags}
    choice = [{k: v for k, v in layer.items() if k in ("task", "task_options")} for layer in layers.values()]
    first = make_config(*choice)
    task = Task.load(first.task, first.task_options)
    defaults = task.defaults()
    config = make_config(*layers.values(), defaults=defaults, command=command)
    config = config.model_copy(update={"task_options": dict(task.options)})
    return Resolved(config, task, merge({"task": defaults, **layers}))

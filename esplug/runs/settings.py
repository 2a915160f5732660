"""Resolution of a run's settings from flags, the configuration file, the resumed run and the task's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.config import Command, RunConfig, make_config, read_toml
from esplug.config.sources import MergedSettings, merge
from esplug.plugins.task import Task


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings, their task, and the source of each setting: ``task``, ``run``, ``file`` or ``flag``."""

    config: RunConfig
    task: Task
    merged: MergedSettings


def resolve(flags: Mapping[str, Any], config_file: str | None, command: Command, resume: Path | None) -> Resolved:
    """Resolve the settings and load the task. Flags win over the file, then the resumed run, then the task's defaults.

    Raises ``UserError``, which names the flags of ``command``, if a setting, the file, the run or the task is invalid.
    """
    file = read_toml(config_file) if config_file else {}
    before: Mapping[str, Any] = {}
    if resume:
        from esplug.runs.resume import inherited

        before = inherited(resume, {**file, **flags})
    sources = {"run": before, "file": file, "flag": flags}
    # The task comes first, because its defaults are a source of the other settings.
    named = [{k: v for k, v in source.items() if k in ("task", "task_options")} for source in sources.values()]
    chosen = make_config(*named)
    task = Task.load(chosen.task, chosen.task_options)
    defaults = task.defaults()
    config = make_config(*sources.values(), defaults=defaults, command=command)
    config = config.model_copy(update={"task_options": dict(task.options)})
    return Resolved(config, task, merge({"task": defaults, **sources}))

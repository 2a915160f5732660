"""Environment: a verifiers taskset by name and arguments, checked to need one answer and nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.utils.loaders import taskset_class

from esplug_tasks_verifiers import arguments, refusals

_ERA = "this task needs an environment for verifiers.v1, of verifiers 0.4"


@dataclass(frozen=True, eq=False)  # hashed by identity
class Environment:
    """An environment that this task can run."""

    name: str  #: without the owner and version that a name of the Environments Hub has
    config: vf.TasksetConfig  #: its arguments
    taskset_type: type[vf.Taskset]

    @property
    def task_type(self) -> type[vf.Task]:
        """The class of all its tasks."""
        task_type: type[vf.Task] = self.taskset_type.task_type()
        return task_type

    @property
    def data_type(self) -> type[vf.TaskData]:
        """The class of the rows of its tasks."""
        data_type: type[vf.TaskData] = self.task_type.data_type()
        return data_type

    @property
    def weights(self) -> list[float]:
        """Weights of its reward functions, in the order in which their rewards are summed."""
        return [getattr(function, "_vf_weight", 1.0) for function in hooks(self.task_type, self.config.task, "reward")]

    def task(self, row: Mapping[str, Any]) -> vf.Task:
        """Make a task of a row. No two tasks share their data or configuration."""
        return self.task_type(self.data_type.model_validate(dict(row)), self.config.task.model_copy(deep=True))


@cache
def config_type(name: str) -> type[vf.TasksetConfig]:
    """Import an environment and return its configuration class.

    Raises:
        ValueError: it is not installed, cannot be imported, is written for an older verifiers, or is refused.
    """
    taskset = _taskset_type(name)
    refusals.check_class(name, taskset)
    found: type[vf.TasksetConfig] = vf.taskset_config_type(name)
    return found


@cache
def load(name: str, values: tuple[tuple[str, Any], ...]) -> Environment:
    """Import an environment and apply its arguments, pairs of option and value.

    Raises:
        ValueError: see :func:`config_type`; or an argument is invalid.
    """
    config = arguments.config(config_type(name), name, dict(values))
    taskset = _taskset_type(name)
    refusals.check_config(name, taskset, config, lambda kind: hooks(taskset.task_type(), config.task, kind))
    return Environment(_bare(name), config, taskset)


def hooks(task_type: type[vf.Task], config: vf.TaskConfig, kind: str) -> list[Callable[..., Any]]:
    """Return the functions of a kind (``reward``, ``metric``) that score every task, before any task is loaded."""
    task: vf.Task = object.__new__(task_type)
    task.config = config
    functions: list[Callable[..., Any]] = task.hooks(kind)
    return functions


def _taskset_type(name: str) -> type[vf.Taskset]:
    module_name = _bare(name).replace("-", "_").lower()
    try:
        module = vf.import_taskset(name)
    except Exception as error:
        missing = error.__cause__ if isinstance(error, ModuleNotFoundError) else None
        if isinstance(missing, ModuleNotFoundError) and missing.name == module_name:
            fault = f"no environment {name!r} is installed (no module {module_name!r})"
            raise ValueError(f"{fault}; install the package that has it") from error
        why = cause(missing or error)
        remedy = _ERA if "'verifiers'" in why else "install what is missing, or update its package"
        raise ValueError(f"environment {name!r} cannot be imported [{why}]; {remedy}") from error
    if hasattr(module, "load_environment"):
        raise ValueError(f"environment {name!r} has load_environment(), of the API before verifiers 0.4; {_ERA}")
    if module.__file__ is None:
        folder = next(iter(module.__path__), "")
        raise ValueError(f"{folder} is no package but a folder around one; install it: pip install {folder}")
    try:
        taskset: type[vf.Taskset] = taskset_class(name)
    except Exception as error:
        raise ValueError(f"module {module.__name__!r} is no environment [{cause(error)}]; {_ERA}") from error
    return taskset


def _bare(name: str) -> str:
    return name.rsplit("/", 1)[-1].split("@", 1)[0]


def cause(error: BaseException) -> str:
    """Return an error's type and message."""
    return f"{type(error).__name__}: {error}"

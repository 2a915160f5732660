"""Verifiers task: the tasks and rewards of an installed environment of the verifiers library.

A task is a few functions marked ``@hookimpl``. esplug calls them in the order in which they appear here. A grading
process calls ``options`` when it starts, and so imports the environment before the first answer's time limit begins.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from esplug import hookimpl
from esplug.hookspecs import Prompt

if TYPE_CHECKING:
    from esplug import Reward
    from esplug_tasks_verifiers.environment import Environment


@hookimpl
def options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Declare the options, and the arguments of the environment that the user chose.

    ``env``: name of the environment, as ``vf-eval`` takes it. ``held_out``: evaluation rows, as a share of the rows if
    below 1, or else as a number. ``max_rows``: rows to read from the environment; 0 for all. ``ARGUMENT``: an argument
    of the environment. ``eval.ARGUMENT``: its value for the evaluation rows, instead of ``held_out``.
    """
    from esplug_tasks_verifiers import arguments

    if not given.get("env"):
        return arguments.OWN
    from esplug_tasks_verifiers import environment

    return arguments.declared(environment.config_type(str(given["env"])), given)


@hookimpl
def defaults(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Let an answer pass if it earns the whole reward. Refuse an environment that needs more than one answer."""
    weights = _environment(options).weights
    return {"max_reward": sum(weight for weight in weights if weight > 0)}


@hookimpl
def load_rows(split: str, path: str | None, options: Mapping[str, Any]) -> Any:
    """Return the environment's tasks as rows, unless the user named a data set, which esplug reads."""
    from esplug_tasks_verifiers import arguments, rows

    environment = _environment(options)
    if path is not None:
        return None
    evaluation = _environment(options, "eval") if arguments.for_eval(options) else None
    parts = rows.split(environment, evaluation, options["max_rows"], options["held_out"])
    if split == "train":
        return parts.train
    return {environment.name: parts.held_out} if parts.held_out else None


@hookimpl
def collate(
    batch: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
) -> tuple[list[list[dict[str, str]]], list[dict[str, Any]]]:
    """Make chat messages of each row. The target is the whole row: rewards may use any field of it."""
    from esplug_tasks_verifiers import prompts

    environment = _environment(options)
    return [prompts.chat(environment, row, number) for number, row in enumerate(batch, start=1)], list(map(dict, batch))


@hookimpl
def template(question: Prompt) -> Prompt:
    """Return the messages as they are: the environment wrote them."""
    return question


@hookimpl
async def reward(model_output: str, target: Mapping[str, Any], options: Mapping[str, Any]) -> "Reward":
    """Sum the environment's weighted rewards; each reward, unweighted, and each of its metrics is a metric."""
    from esplug_tasks_verifiers import scoring

    return await scoring.score(_environment(options), model_output, target)


def _environment(options: Mapping[str, Any], split: str = "train") -> "Environment":
    from esplug_tasks_verifiers import arguments, environment

    if not options["env"]:
        raise ValueError("name an installed environment: --task-option env=NAME")
    values = arguments.of_split(options, split)
    return environment.load(options["env"], tuple(sorted(values.items())))

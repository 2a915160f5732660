"""For the tests of plugin packages: what a run will ask of a task, a shaping or a logger, asked without a model.

    from esplug.testing import check_task

    def test_the_task():
        check_task("answer-length", gold=lambda target: " ".join(["word"] * target))

``esplug check NAME`` makes the same checks and prints them. ``task_checks``, ``shaping_checks`` and ``logger_checks``
return them, as a list of :class:`Check`.
"""

from collections.abc import Mapping

from esplug.authoring.conformance.answers import Gold
from esplug.authoring.conformance.checklist import Check
from esplug.authoring.conformance.loggers import logger_checks
from esplug.authoring.conformance.shapings import shaping_checks
from esplug.authoring.conformance.tasks import task_checks

__all__ = ["Check", "check_logger", "check_shaping", "check_task", "logger_checks", "shaping_checks", "task_checks"]


def check_task(
    plugin: object,
    options: Mapping[str, object] | None = None,
    *,
    train_dataset: str | None = None,
    eval_dataset: str | None = None,
    gold: Gold | None = None,
) -> list[Check]:
    """Check a task, and return the checks.

    Args:
        plugin: the name of an installed task; or a module, class or object with its hooks.
        options: the task's options, as ``--task-option`` gives them.
        train_dataset: rows to train on, as ``--train-dataset`` names them; ``None`` for the task's own.
        eval_dataset: rows to evaluate on, likewise.
        gold: makes of a target an answer that is right, and must then earn more than an empty one.

    Raises:
        AssertionError: something is not as it must be; the message lists it.
        UserError: no such task is installed, or what was given cannot be used.
    """
    found = task_checks(plugin, options, train_dataset=train_dataset, eval_dataset=eval_dataset, gold=gold)
    return _passed("task", plugin, found)


def check_shaping(plugin: object) -> list[Check]:
    """Check a shaping, and return the checks.

    Args:
        plugin: the name of an installed shaping; or a module, class or object with its hook.

    Raises:
        AssertionError: something is not as it must be; the message lists it.
        PluginError: no such shaping is installed.
    """
    return _passed("shaping", plugin, shaping_checks(plugin))


def check_logger(plugin: object) -> list[Check]:
    """Check a logger, and return the checks.

    Args:
        plugin: the name of an installed logger; or a module, class or object with its hooks.

    Raises:
        AssertionError: something is not as it must be; the message lists it.
        PluginError: no such logger is installed.
    """
    return _passed("logger", plugin, logger_checks(plugin))


def _passed(kind: str, plugin: object, checks: list[Check]) -> list[Check]:
    failed = [f"- {check.name}: {check.detail}" for check in checks if not check.ok]
    if failed:
        raise AssertionError("\n".join([f"{len(failed)} of {len(checks)} checks of {kind} {plugin!r} fail:", *failed]))
    return checks

"""Test helpers for plugin packages: they check a task, shaping or logger as a run would use it, without a model.

    from esplug.testing import check_task

    def test_the_task():
        check_task("answer-length", gold=lambda target: " ".join(["word"] * target))

``esplug check NAME`` makes the same checks and prints them. ``task_checks``, ``shaping_checks`` and ``logger_checks``
take the same arguments and return the checks as a list of :class:`Check`, without raising ``AssertionError``.
"""

from collections.abc import Mapping

from esplug.authoring.conformance.answers import Gold
from esplug.authoring.conformance.checklist import Check, all_passed
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
    """Check a task and return the checks.

    Args:
        plugin: name of an installed task; or a module, class or object with its hooks.
        options: the task's options, as in ``--task-option``.
        train_dataset: training data, as in ``--train-dataset``; ``None`` for the task's own.
        eval_dataset: evaluation data, as in ``--eval-dataset``; ``None`` for the task's own.
        gold: makes a right answer from a target. It must earn more than an empty answer.

    Raises:
        AssertionError: a check fails; the message lists all failed checks.
        UserError: the task is not installed, or an option or data set cannot be used.
    """
    checks = task_checks(plugin, options, train_dataset=train_dataset, eval_dataset=eval_dataset, gold=gold)
    return all_passed("task", plugin, checks)


def check_shaping(plugin: object) -> list[Check]:
    """Check a shaping, by name, module, class or object, and return the checks.

    Raises:
        AssertionError: a check fails; the message lists all failed checks.
        PluginError: the shaping is not installed.
    """
    return all_passed("shaping", plugin, shaping_checks(plugin))


def check_logger(plugin: object) -> list[Check]:
    """Check a logger, by name, module, class or object, and return the checks.

    The simulated runs write to temporary folders. A logger that sends data to a server does send it. An object is used
    for all runs.

    Raises:
        AssertionError: a check fails; the message lists all failed checks.
        PluginError: the logger is not installed.
    """
    return all_passed("logger", plugin, logger_checks(plugin))

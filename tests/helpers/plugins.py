"""A valid task plugin, the names of the checks for plugins, and those that failed."""

from esplug import hookimpl
from esplug.testing import Check, logger_checks, shaping_checks, task_checks


class Task:
    """A valid task; subclasses break one part of it."""

    @hookimpl
    def options(self):
        return {"scale": 1.0}

    @hookimpl
    def load_rows(self, split):
        return [{"q": f"{split} {n}", "a": f"answer {n}"} for n in range(4)]

    @hookimpl
    def collate(self, batch):
        return [row["q"] for row in batch], [row["a"] for row in batch]

    @hookimpl
    def template(self, question):
        return [{"role": "user", "content": question}]

    @hookimpl
    def reward(self, model_output, target, options):
        return options["scale"] * (model_output == target)


def names_of_checks(page: str) -> list[str]:
    """Return the names of the checks that a page of the documentation describes."""
    kit, plugin = {
        "tasks": (task_checks, Task), "shapings": (shaping_checks, "z-scores"), "loggers": (logger_checks, "jsonl")
    }[page]  # fmt: skip
    return [check.name for check in kit(plugin)]


def failed(checks: list[Check]) -> dict[str, str]:
    """Return the details of failed checks by name."""
    assert all("\n" not in check.detail for check in checks)
    return {check.name: check.detail for check in checks if not check.ok}

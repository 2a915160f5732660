"""New plugin packages, written from the templates in this folder.

:class:`string.Template` replaces names such as ``$name`` in a template; ``$$`` is a dollar sign.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from esplug.errors import UserError
from esplug.plugins import list_plugins
from esplug.utils.text import brief

NewKind = Literal["task", "shaping", "logger"]
_PREFIXES: dict[NewKind, str] = {"task": "esplug-tasks-", "shaping": "esplug-shapings-", "logger": "esplug-loggers-"}
_LONGEST_NAME = 40
_SMALL_RUN = (
    "--model-name HuggingFaceTB/SmolLM2-135M-Instruct --max-model-len 512 --max-tokens 32 "
    "--population-size 4 --batch-size 8 --n-iterations 2 --eval-limit 16"
)
_COUNTDOWN = "--task countdown --task-option level=easy --task-option shots=1"
_USES: dict[NewKind, str] = {
    "task": "--task {name}",
    "shaping": f"{_COUNTDOWN} --reward-shaping {{name}}",
    "logger": f"{_COUNTDOWN} --logging console,jsonl,{{name}}",
}
#: Files of a new package and their templates.
_FILES = {
    "pyproject.toml": "pyproject.toml.tmpl",
    "README.md": "{kind}/README.md.tmpl",
    "{module}/__init__.py": "{kind}/plugin.py.tmpl",
    "tests/test_{test}.py": "{kind}/test_plugin.py.tmpl",
    ".gitignore": "gitignore.tmpl",
    ".github/workflows/ci.yml": "ci.yml.tmpl",
}


@dataclass(frozen=True, slots=True)
class NewPlugin:
    """Package of a new plugin. Create it with :meth:`named`."""

    kind: NewKind
    name: str  #: which users will type, such as ``answer-length``
    turns: bool = False  #: whether the task has several turns

    @classmethod
    def named(cls, kind: NewKind, name: str, *, turns: bool = False) -> "NewPlugin":
        """Check a name and create the package. The name may be that of the plugin or of its distribution.

        Raises:
            UserError: the name is invalid, has the prefix of another kind, or belongs to an installed plugin; or a
                plugin that is no task shall have turns.
        """
        if turns and kind != "task":
            raise UserError(f"--turns is for tasks, not for a {kind}; leave it out")
        other, short = without_prefix(name)
        if other not in (None, kind):
            raise UserError(f"{brief(name)} is the name of a {other}; give --kind {other}, or another name")
        if without_prefix(short)[0]:
            raise UserError(f"{brief(name)} has two prefixes of distributions; give the name without them")
        if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", short) or len(short) > _LONGEST_NAME:
            raise UserError(
                f"{brief(repr(name))} is not a valid plugin name; use at most {_LONGEST_NAME} lower-case letters, "
                "digits and single dashes, such as answer-length"
            )
        for plugin in list_plugins():
            if (plugin.kind, plugin.name) == (kind, short):
                raise UserError(f"{plugin} is already installed; choose another name")
        return cls(kind, short, turns)

    @property
    def distribution(self) -> str:
        """Name of the package for ``pip``."""
        return _PREFIXES[self.kind] + self.name

    @property
    def training(self) -> str:
        """Command that trains a small model with the plugin, on a CPU."""
        return f"esplug train {_USES[self.kind].format(name=self.name)} {_SMALL_RUN}"

    @property
    def files(self) -> dict[str, str]:
        """Text of every file, by its path in the package."""
        module = self.distribution.replace("-", "_")
        names = {
            "kind": self.kind,
            "name": self.name,
            "distribution": self.distribution,
            "module": module,
            "test": self.name.replace("-", "_"),
            "training": self.training,
            "entry_point": f"{module}:RunStatus" if self.kind == "logger" else module,
        }
        texts = {}
        for path, template in _FILES.items():
            folder = "turns" if self.turns else self.kind
            source = files("esplug.authoring.scaffold") / template.format(kind=folder)
            texts[path.format(**names)] = Template(source.read_text(encoding="utf-8")).substitute(names)
        return texts

    def write(self, folder: Path) -> None:
        """Write the package into a folder, which is created if it does not exist.

        Raises:
            UserError: the folder contains anything but ``.git``, or cannot be written. It is left unchanged.
        """
        shown = brief(str(folder))
        made: list[Path] = []
        try:
            if folder.exists() and (not folder.is_dir() or any(each.name != ".git" for each in folder.iterdir())):
                raise UserError(f"{shown} already exists and is not empty; give another --directory")
            for path, text in self.files.items():
                file = folder / path
                for parent in reversed([each for each in file.parents if not each.exists()]):
                    parent.mkdir()
                    made.append(parent)
                made.append(file)
                file.write_text(text, encoding="utf-8")
        except OSError as error:
            for each in reversed(made):
                with suppress(OSError):
                    each.rmdir() if each.is_dir() else each.unlink()
            fault = f"{shown} cannot be written ({error.strerror or error})"
            raise UserError(f"{fault}; give another --directory") from error


def without_prefix(name: str) -> tuple[NewKind | None, str]:
    """Split the name of a distribution into kind and plugin name. The kind is ``None`` if there is no prefix."""
    for kind, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            return kind, name.removeprefix(prefix)
    return None, name

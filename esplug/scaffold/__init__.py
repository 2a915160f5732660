"""New plugin packages, written from the templates beside this file.

A template is text in which :class:`string.Template` fills in ``$name`` and the like; ``$$`` is a dollar sign.
"""

import re
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from esplug.errors import UserError
from esplug.plugins import brief, list_plugins

NewKind = Literal["task", "shaping", "logger"]
_PREFIXES: dict[NewKind, str] = {
    "task": "esplug-tasks-",
    "shaping": "esplug-shapings-",
    "logger": "esplug-loggers-",
}
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
#: Files of a new package, and the templates they come from.
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
    """A plugin that is about to be written. Make one with :meth:`named`.

    Attributes:
        kind: ``task``, ``shaping`` or ``logger``.
        name: what users will type, such as ``answer-length``.
    """

    kind: NewKind
    name: str

    @classmethod
    def named(cls, kind: NewKind, name: str) -> "NewPlugin":
        """Check a name, which may be the distribution's.

        Raises:
            UserError: it is no name, has the prefix of another kind, or is that of a plugin that is installed.
        """
        short = name
        for other, prefix in _PREFIXES.items():
            if name.startswith(prefix):
                if other != kind:
                    raise UserError(f"{brief(name)} is the name of a {other}; give --kind {other}, or another name")
                short = name.removeprefix(prefix)
        if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", short) or len(short) > _LONGEST_NAME:
            raise UserError(
                f"{brief(repr(name))} is no name for a plugin; take lower-case letters and digits, joined by single "
                f"dashes, at most {_LONGEST_NAME}, such as answer-length"
            )
        for plugin in list_plugins():
            if (plugin.kind, plugin.name) == (kind, short):
                raise UserError(f"{plugin} is installed already; choose another name")
        return cls(kind, short)

    @property
    def distribution(self) -> str:
        """What ``pip`` will call the package."""
        return _PREFIXES[self.kind] + self.name

    @property
    def module(self) -> str:
        """What Python will import."""
        return self.distribution.replace("-", "_")

    @property
    def training(self) -> str:
        """A command that trains a small model with the plugin, on a CPU."""
        return f"esplug train {_USES[self.kind].format(name=self.name)} {_SMALL_RUN}"

    @property
    def files(self) -> dict[str, str]:
        """Every file's path in the package, and its text."""
        names = {
            "kind": self.kind,
            "name": self.name,
            "distribution": self.distribution,
            "module": self.module,
            "test": self.name.replace("-", "_"),
            "training": self.training,
            "entry_point": f"{self.module}:RunStatus" if self.kind == "logger" else self.module,
        }
        templates = files(__name__)
        return {
            path.format(**names): Template(
                (templates / template.format(**names)).read_text(encoding="utf-8")
            ).substitute(names)
            for path, template in _FILES.items()
        }

    def write(self, folder: Path) -> None:
        """Write the package into a folder, which this makes.

        Raises:
            UserError: the folder exists, or cannot be written. Nothing is left of it then.
        """
        texts = self.files
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{brief(str(folder))} exists already; give another --directory, or remove it") from None
        except OSError as error:
            raise UserError(_cannot_write(folder, error)) from error
        try:
            for path, text in texts.items():
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(_cannot_write(folder, error)) from error


def _cannot_write(folder: Path, error: OSError) -> str:
    return f"{brief(str(folder))} cannot be written ({error.strerror or error}); give another --directory"

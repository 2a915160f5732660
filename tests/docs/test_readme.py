"""The README's task, installed and used as printed. ``test_docs.py`` checks the rest of the README."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.docs import blocks

README = Path("README.md")


@pytest.mark.install
def test_the_task_in_the_readme_installs_and_works(tmp_path) -> None:
    project, site = tmp_path / "project", tmp_path / "site"
    package = project / "esplug_tasks_reverse"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(next(text for text in blocks(README, "python") if "hookimpl" in text))
    (project / "pyproject.toml").write_text(next(text for text in blocks(README, "toml") if "build-system" in text))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(project)], check=True)
    code = (
        "from esplug.plugins.task import Task\n"
        "task = Task.load('reverse', {})\n"
        "questions, targets = task.collate([{'word': 'stone'}])\n"
        "assert 'stone' in task.template(questions[0])\n"
        "assert (task.reward(' Enots', targets[0]), task.reward('stone', targets[0])) == (1.0, 0.0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    listed = subprocess.run(
        [sys.executable, "-m", "esplug", "plugins"], capture_output=True, text=True, env=environment
    )
    assert re.search(r"task +reverse +esplug-tasks-reverse +0\.1\.0 +ok", listed.stdout)

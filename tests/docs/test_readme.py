"""The README's task, installed and used as printed. ``test_docs.py`` checks the rest of the README."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from esplug.runs.summary import summarise
from tests.helpers.docs import blocks
from tests.helpers.packages import build_and_install, run_with, write

README = Path("README.md")
(COMMANDS,) = (text for text in blocks(README, "") if "--task sentiment" in text)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the folder into which the README's package is installed."""
    folder = tmp_path_factory.mktemp("readme")
    files = {
        "esplug_tasks_sentiment/__init__.py": next(text for text in blocks(README, "python") if "hookimpl" in text),
        "pyproject.toml": next(text for text in blocks(README, "toml") if "build-system" in text),
    }
    return build_and_install([write(files, folder / "sentiment")], folder)


@pytest.fixture
def folder(tmp_path, small_model) -> Path:
    """Return a folder with the README's data, and the model under the name that `make demo` gives it."""
    lines = [line for line in COMMANDS.replace("\\\n", " ").splitlines() if line.startswith("printf")]
    subprocess.run(["bash", "-e"], input="\n".join(lines), text=True, check=True, cwd=tmp_path)
    (tmp_path / "models").symlink_to(small_model.parent)
    return tmp_path


@pytest.mark.install
def test_the_task_in_the_readme_installs_and_works(site) -> None:
    code = (
        "from esplug.plugins.task import Task\n"
        "task = Task.load('sentiment', {})\n"
        "questions, targets = task.collate([{'word': 'kind', 'label': 'good'}])\n"
        "assert task.template(questions[0]).endswith('kind:')\n"
        "answers = ' good\\n', 'bad', 'nice', ''\n"
        "assert [task.reward(answer, targets[0]) for answer in answers] == [1.0, 0.2, 0.0, 0.0]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}."})
    listed = run_with(site, "esplug", "plugins").stdout
    assert re.search(r"task +sentiment +esplug-tasks-sentiment +0\.1\.0 +ok", listed)


@pytest.mark.install
def test_the_data_in_the_readme_has_no_word_twice(folder, site) -> None:
    train, held_out = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("words.jsonl", "held_out.jsonl")
    )
    assert (len(train), len(held_out)) == (32, 24)
    assert len({row["word"] for row in train + held_out}) == 56
    for rows in (train, held_out):
        assert [row["label"] for row in rows].count("good") == len(rows) / 2
    data = ["--train-dataset", str(folder / "words.jsonl"), "--eval-dataset", str(folder / "held_out.jsonl")]
    checked = run_with(site, "esplug", "check", "sentiment", *data)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.vllm
@pytest.mark.install
@pytest.mark.soak
def test_the_command_in_the_readme_learns(folder, site) -> None:
    (command,) = re.findall(r"esplug (train .*)", COMMANDS.replace("\\\n", " "))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.getcwd()]), "HF_HUB_OFFLINE": "1"}
    arguments = [sys.executable, "-m", "esplug", *command.split(), "--experiment-name", "run"]
    iterations = int(arguments[arguments.index("--n-iterations") + 1])
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"change +\+0\.\d", done.stdout)  # the summary says what was learnt
    run = summarise(folder / "experiments" / "run")
    assert (run.iterations, run.unchanged) == (iterations, "")
    assert run.first.figure == "reward"
    assert run.first.mean > 0.1  # a signal from the start
    assert run.last.mean > run.first.mean + 0.15

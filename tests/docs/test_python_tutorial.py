"""`docs/python.md` is one typed script that runs."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.toy import use_toys

PAGE = Path("docs/python.md")


@pytest.fixture
def script(tmp_path) -> Path:
    """The page's Python, from top to bottom."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    file = tmp_path / "tutorial.py"
    file.write_text("\n".join(blocks))
    return file


def test_it_is_typed(script) -> None:
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_wrong_argument_is_a_type_error(script) -> None:
    text = script.read_text()
    assert text.count("n_vllm_engines=1") == 1
    script.write_text(text.replace("n_vllm_engines=1", "n_vllm_engines='one'"))
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "n_vllm_engines" in done.stdout
    assert done.stdout.count("error:") == 1


@pytest.fixture
def on_a_tiny_model(script, tiny_model) -> Path:
    text = script.read_text()
    named = 'MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"'
    assert named in text
    script.write_text(text.replace(named, f"MODEL = {str(tiny_model)!r}"))
    return script


def check(output: str, folder: Path) -> None:
    assert "after 1 updates: " in output
    assert "finished after 2 updates" in output
    assert "Say in one short sentence what a forest is." in output
    assert "('evaluation 2', " in output
    assert (folder / "experiments" / "brevity" / "metrics.jsonl").exists()


def test_it_runs(on_a_tiny_model, tmp_path, monkeypatch, capsys) -> None:
    use_toys(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    runpy.run_path(str(on_a_tiny_model))
    check(capsys.readouterr().out, tmp_path)


@pytest.mark.vllm
@pytest.mark.soak
def test_it_runs_with_engines(on_a_tiny_model, tmp_path) -> None:
    command = [sys.executable, str(on_a_tiny_model)]
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    check(done.stdout, tmp_path)

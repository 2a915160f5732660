"""`docs/python.md` is one typed script that runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.vllm
def test_it_runs(script, tiny_model, tmp_path) -> None:
    text = script.read_text()
    named = 'MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"'
    assert named in text
    script.write_text(text.replace(named, f"MODEL = {str(tiny_model)!r}"))
    environment = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 1 updates: " in done.stdout
    assert "Say in one short sentence what a forest is." in done.stdout
    assert "('evaluation 2', " in done.stdout
    assert (tmp_path / "experiments" / "brevity" / "metrics.jsonl").exists()

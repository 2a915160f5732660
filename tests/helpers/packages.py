"""Plugin packages: their files in the documentation, and their installation with pip."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Tasks of the repository's own packages.
OWN_TASKS = sorted(
    name
    for project in ROOT.glob("esplug_tasks_*/pyproject.toml")
    for name in tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"]["esplug.tasks"]
)


def files_in(page: str) -> dict[str, str]:
    """Return the files that a page shows, by path; the path precedes the block."""
    text = Path(page).read_text(encoding="utf-8")
    return dict(re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def write(files: dict[str, str], folder: Path) -> Path:
    for path, content in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder


def build_and_install(projects: list[Path], folder: Path) -> Path:
    """Build wheels of projects, and install them into a new folder."""
    wheels, site = folder / "wheels", folder / "site"
    pip = [sys.executable, "-m", "pip"]
    offline = ["--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, *projects], check=True)
    subprocess.run([*pip, "install", *offline, "--no-compile", "--target", site, *wheels.glob("*.whl")], check=True)
    return site


def run_with(site: Path, *command: str, cwd: Path | str = ".") -> subprocess.CompletedProcess[str]:
    """Run a Python module, such as esplug or pytest, with the packages in ``site``."""
    environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )

"""The distributions: what is in them, and that they are all that a user needs beside their dependencies."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement

import esplug
from esplug.cli.app import app
from esplug.utils.torch_builds import COMPANIONS

ROOT = Path(__file__).parents[2]
TASKS = tuple(sorted(file.parent.name for file in ROOT.glob("esplug_tasks_*/pyproject.toml")))
FOLDERS = {"esplug": ROOT, **{task: ROOT / task for task in TASKS}}
VERSIONS = {
    name: tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]
    for name, folder in FOLDERS.items()
}
LEFTOVERS = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__")


def test_one_version_of_all_is_in_the_changelog_and_fits_the_tasks() -> None:
    assert set(VERSIONS.values()) == {esplug.__version__}
    assert f"\n## {esplug.__version__} - " in (ROOT / "CHANGELOG.md").read_text()
    for task in TASKS:
        declared = tomllib.loads((ROOT / task / "pyproject.toml").read_text())["project"]["dependencies"]
        (core,) = [each for each in map(Requirement, declared) if each.name == "esplug"]
        assert esplug.__version__ in core.specifier
        major, minor, *_ = esplug.__version__.split(".")
        assert f"{major}.{int(minor) + 1}.0" not in core.specifier


def test_the_changelog_names_every_command() -> None:
    def names(command: Any, name: str) -> Iterator[str]:
        commands = getattr(command, "commands", {})
        for word in commands:
            yield from names(commands[word], f"{name} {word}")
        if not commands:
            yield name

    changelog = (ROOT / "CHANGELOG.md").read_text()
    commands = set(names(typer.main.get_command(app), "esplug"))
    assert {name for name in commands if not re.search(rf"`{name}[` ]", changelog)} == set()


def test_each_distribution_has_the_licence() -> None:
    for folder in FOLDERS.values():
        assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all wheels and source distributions, built from a clean copy, tests included."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for file in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / file, source)
    for folder in ("esplug", "tests", *TASKS):
        shutil.copytree(ROOT / folder, source / folder, ignore=LEFTOVERS)

    def build(folder: Path) -> None:  # the wheel from the source distribution, as whoever has only that would
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, [source, *(source / task for task in TASKS)]))
    return out


@pytest.mark.install
def test_distributions_hold_the_package_and_nothing_else(dist: Path) -> None:
    assert len(list(dist.iterdir())) == 2 * len(FOLDERS)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())], check=True)
    for name, folder in FOLDERS.items():
        package = ROOT / name
        ours = (
            path
            for kind in ("*.py", "*.tmpl", "page.*", "live.js", "catalogue.jsonl", "py.typed")
            for path in package.rglob(kind)
            if path.parent.name != "__pycache__"
        )
        files = {file for path in ours if not (file := str(path.relative_to(package))).startswith("build/")}
        assert "py.typed" in files
        stem = f"{name}-{VERSIONS[name]}"
        with zipfile.ZipFile(dist / f"{stem}-py3-none-any.whl") as wheel:
            names = set(wheel.namelist())
            metadata = email.message_from_bytes(wheel.read(f"{stem}.dist-info/METADATA"))
        info = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
        assert names == {f"{name}/{file}" for file in files} | {f"{stem}.dist-info/{file}" for file in info}
        assert metadata["License-Expression"] == "Apache-2.0"
        assert "Typing :: Typed" in metadata.get_all("Classifier", [])
        with tarfile.open(dist / f"{stem}.tar.gz") as archive:
            inside = {each.name.removeprefix(f"{stem}/") for each in archive if each.isfile()}
        inside = {file for file in inside if ".egg-info/" not in file}
        place = "" if package == folder else "esplug/"
        extra = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
        assert inside == {place + file for file in files} | extra


@pytest.mark.install
@pytest.mark.vllm
def test_a_clean_environment_trains_from_the_wheels(dist: Path, tmp_path: Path, tiny_model: Path) -> None:
    """Everything but esplug's own distributions is the running interpreter's, which saves gigabytes."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("esplug", "__editable__", "__pycache__")):
            (site / path.name).symlink_to(path)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--find-links", dist]
    run(*pip, "esplug-tasks-math")  # pulls esplug
    program = python.with_name("esplug")
    assert run(program, "--version") == f"esplug {esplug.__version__}\n"
    run(*pip, "esplug-tasks-countdown")
    plugins = json.loads(run(program, "plugins", "--json"))["plugins"]
    tasks = {plugin["name"]: plugin["distribution"] for plugin in plugins if plugin["kind"] == "task"}
    assert tasks == {"countdown": "esplug-tasks-countdown", "math": "esplug-tasks-math"}
    answer = r"so \boxed{\frac{1}{2}}"
    grade = f"from esplug.plugins.task import Task; print(Task.load('math').reward(r'{answer}', '0.5').value)"
    assert float(run(python, "-c", grade)) == 1.0
    where = "import esplug, esplug_tasks_math; print(esplug.__file__, esplug_tasks_math.__file__)"
    assert all(str(site) in file for file in run(python, "-c", where).split())

    flags = "--max-tokens 4 --population-size 2 --batch-size 2 --n-iterations 1 --eval-limit 2 --n-vllm-engines 1"
    loggers = "--logging csv,tensorboard --experiment-name run --output-directory ."
    run(program, "train", "--task", "countdown", "--model-name", tiny_model, *flags.split(), *loggers.split())
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-es_fine_tuned_iteration_1" / "config.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 4
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.fixture(params=os.environ.get("PYTHONS", "python3.11 python3.12 python3.13").split())
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Folder of a new environment of one Python, which is deleted afterwards: it grows to 4 GB."""
    interpreter = shutil.which(request.param)
    if interpreter is None or subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no {request.param} on PATH that starts")  # a version manager's stand-in may not
    subprocess.run([interpreter, "-m", "venv", tmp_path / "fresh"], check=True)
    yield tmp_path / "fresh"
    shutil.rmtree(tmp_path / "fresh")


@pytest.mark.fresh
@pytest.mark.install
@pytest.mark.vllm
def test_one_pip_command_installs_all_that_training_needs(
    dist: Path, fresh: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """The README's command, and then what users run, in processes of every kind.

    vLLM for CPUs requires a CPU build of torch. Where pip finds none for a Python, esplug is tried without engines.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = inherited | {"VLLM_CACHE_ROOT": str(tmp_path / "vllm")}  # empty: vLLM inspects the model's class anew

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(fresh / "bin" / program), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    engines = "+cpu" in run("pip", "index", "versions", "torch").stdout
    esplug_itself = "esplug[cpu]" if engines else "esplug"
    installed = run("pip", "install", "--find-links", dist, esplug_itself, "esplug-tasks-countdown")
    assert installed.returncode == 0, installed.stderr

    model = "--task", "countdown", "--model-name", tiny_model, "--max-tokens", "4"
    limited = *model, "--eval-limit", "2"
    if not engines:
        for command in (("plugins",), ("check", "countdown"), ("data", "list"), ("train", "--help")):
            done = run("esplug", *command)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        refused = run("esplug", "train", *limited, "--dry-run")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: vLLM is not installed: pip install 'esplug[gpu]', or 'esplug[cpu]'")
        return
    sizes = "--population-size 2 --batch-size 2 --n-iterations 1 --n-vllm-engines 1 --output-directory ."
    train = "train", *limited, *sizes.split()
    for command in (
        (*train, "--dry-run"),
        (*train, "--experiment-name", "run"),
        (*train, "--experiment-name", "tensor-parallel", "--n-gpu-per-vllm-engine", "2"),
        ("eval", *model, "--limit", "2", "--checkpoint", "run"),
        ("export", "run", "--out", "exported"),
        ("doctor", *limited),
        ("doctor", *limited, "--fix", "--yes"),
    ):
        done = run("esplug", *command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    # What cannot be loaded is gone now, so that programs that do not import esplug work too.
    plain = "from transformers import AutoModelForCausalLM as a; print(type(a.from_pretrained('exported')).__name__)"
    assert run("python", "-c", plain).stdout == "LlamaForCausalLM\n"
    gone = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, sys.argv[1:])))"
    cpu_builds = {name for name in COMPANIONS if run("python", "-c", f"import {name}").returncode == 0}
    assert run("python", "-c", gone, *set(COMPANIONS) - cpu_builds).returncode == 0

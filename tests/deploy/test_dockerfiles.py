"""The Dockerfiles: their instructions, and those steps of theirs that need no container."""

import fnmatch
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy").glob("Dockerfile.*"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
pytest.importorskip("dockerfile_parse", reason="pip install dockerfile-parse")
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def stages(file: Path):
    from tests.helpers.dockerfile import stages

    return stages(file)


def requirements(command: str) -> list[str]:
    """Return the arguments of an installation that are no options."""
    words = shlex.split(command)
    return [word for word in words[words.index("install") + 1 :] if not re.match(r"-|https:|/wheels/", word)]


def in_context(path: str) -> bool:
    """Whether Docker sends this path of the repository: the last line of .dockerignore that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            parts, pattern = path.split("/"), line.removeprefix("!").removeprefix("**/")
            anywhere = "**/" in line
            if any(fnmatch.fnmatch(part, pattern) for part in (parts if anywhere else parts[:1])):
                sent = line.startswith("!")
    return sent


def test_both_kinds_are_there() -> None:
    assert [file.name for file in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@every_file
def test_an_image_is_pinned_and_runs_without_root(file: Path) -> None:
    build, image = stages(file)
    for stage in (build, image):
        assert re.search(r":v?\d+\.\d+", stage.image), stage.image
    (uid,) = [value.partition("=")[2] for value in image.values("ARG") if value.startswith("UID=")]
    assert image.values("USER") == ["$UID"]
    assert int(uid) >= 1000
    last_root_step = max(i for i, (instruction, _) in enumerate(image.steps) if instruction == "RUN")
    assert image.steps.index(("USER", "$UID")) > last_root_step
    assert image.values("WORKDIR") == ["/home/esplug"]
    assert "ENTRYPOINT" not in dict(image.steps) or image.values("ENTRYPOINT") == ["[]"]  # Ray runs bash in it


@every_file
def test_everything_that_it_copies_is_there(file: Path) -> None:
    build, image = stages(file)
    assert build.values("COPY") == [". /src"]
    assert image.values("COPY") == [f"--from={build.name} /wheels /wheels"]
    tasks = shlex.split(build.values("ARG")[0].partition("=")[2])[0].split()
    assert len(tasks) > 1
    for path in ["pyproject.toml", "README.md", "LICENSE", *(f"esplug_tasks_{task}/pyproject.toml" for task in tasks)]:
        assert (ROOT / path).is_file()
        assert in_context(path), path
    for path in [
        ".git/config",
        ".venv/bin/python",
        "models/x",
        "experiments/run",
        "esplug/__pycache__/x.pyc",
        "build/x",
    ]:
        assert not in_context(path), path


@every_file
def test_what_it_installs_fits_esplug(file: Path) -> None:
    _, image = stages(file)
    (install,) = [step for step in image.values("RUN") if "/wheels/" in step]
    found = {each.name: each for each in map(Requirement, requirements(install))}
    assert found["ray"].extras == {"default"}  # which `ray job submit` and KubeRay need
    extra = "cpu" if file.suffix == ".cpu" else "gpu"
    for declared in [*map(Requirement, EXTRAS[extra]), Requirement("ray>=2.44")]:
        (pin,) = found[declared.name].specifier
        if pin.operator == "==":
            assert pin.version in declared.specifier, declared
        else:
            assert str(pin) in map(str, declared.specifier), declared
    if extra == "cpu":  # what the tests and the benchmarks run with
        tested = re.findall(r"^CPU_STACK := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
        assert {f"{each.name}{each.specifier}" for each in found.values()} == set(tested)
    else:  # pip must not replace the vLLM of the image
        assert image.image == f"vllm/vllm-openai:v{next(iter(found['vllm'].specifier)).version}"


@every_file
@pytest.mark.install
def test_the_wheels_that_it_builds_are_all_of_esplug(file: Path, tmp_path: Path) -> None:
    build, image = stages(file)
    context = tmp_path / "src"
    subprocess.run(["git", "-C", ROOT, "checkout-index", "--all", f"--prefix={context}/"], check=True)
    for path in context.iterdir():
        if not in_context(path.name):
            subprocess.run(["rm", "-r", path], check=True)

    def in_prefix(command: str) -> str:
        """Return a step with its folders, and Python, in this test's."""
        command = re.sub(r"(?<![\w.])/(src|wheels|site)\b", rf"{tmp_path}/\1", command)
        return re.sub(r"(?<![\w/])(uv )?pip (?=wheel|install)", f"{sys.executable} -m pip ", command)

    defaults = dict(shlex.split(value)[0].split("=", 1) for value in build.values("ARG"))
    offline = {"PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}  # as pip reads it, 0 is "no isolation"
    for step in build.values("RUN"):
        subprocess.run(["sh", "-c", in_prefix(step)], env=os.environ | defaults | offline, check=True, timeout=120)
    (install,) = [step for step in image.values("RUN") if "/wheels/" in step]
    own = f"pip install --no-deps --target /site {shlex.split(install)[-1]}"
    subprocess.run(["sh", "-c", in_prefix(own)], env=os.environ | offline, check=True, timeout=120)
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split("esplug --version")],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout == f"esplug {version}\n", done.stderr
    assert (tmp_path / "site" / "esplug" / "report" / "page.css").is_file()
    installed = {path.name for path in (tmp_path / "site").glob("esplug*") if path.suffix != ".dist-info"}
    assert installed == {"esplug", *(f"esplug_tasks_{task}" for task in defaults["TASKS"].split())}

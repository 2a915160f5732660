"""The files around the code parse, agree with each other, and call commands that exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import esplug

WORKFLOWS = sorted(Path(".github/workflows").glob("*.yml"))
MAKEFILE = Path("Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def parsed(path: Path | str) -> Any:
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=str)
def test_workflows_call_targets_of_the_makefile(path) -> None:
    for job in parsed(path)["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert set(re.findall(r"make (\w+)", step.get("run", ""))) <= TARGETS


def test_only_the_publishing_job_may_ask_pypi_for_a_token() -> None:
    for path in WORKFLOWS:
        for name, job in parsed(path)["jobs"].items():
            assert (job.get("permissions") == {"id-token": "write"}) == (name == "publish")


@pytest.mark.parametrize("path", sorted(Path(".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_issue_templates_have_what_github_asks_for(path) -> None:
    template = parsed(path)
    assert {"name", "description", "body"} <= template.keys()
    ids = [field["id"] for field in template["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in template["body"])


def test_pre_commit_runs_the_tools_of_make_lint() -> None:
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    lint = MAKEFILE[MAKEFILE.index("\nlint:") :].split("\n\n")[0].replace("--check ", "").replace("$(BIN)/", "")
    lint = lint.replace(
        "$(TASKS)", " ".join(sorted(str(file.parent) for file in Path().glob("esplug_tasks_*/pyproject.toml")))
    )
    commands = [
        hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in repository["hooks"]
    ]
    assert commands == [line.strip().removesuffix(" .") for line in lint.strip().splitlines()[1:]]


def test_the_citation_has_the_version() -> None:
    assert parsed("CITATION.cff")["version"] == esplug.__version__


def test_make_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make (\w+) +\S", listed, re.MULTILINE)) == TARGETS

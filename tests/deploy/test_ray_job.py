"""``esplug train`` under ``ray job submit``: its output and exit status arrive, and it uses the job's cluster."""

import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.ray_nodes import NodeError, Nodes

pytestmark = [pytest.mark.vllm, pytest.mark.install]

#: Packages of ``ray[default]``, without which Ray has no job server.
DASHBOARD = ("aiohttp_cors", "colorful", "opencensus")
TRAIN = (
    "-m esplug train --task countdown --task-option level=easy --task-option shots=0 --dtype float32 --max-tokens 4 "
    "--population-size 2 --batch-size 2 --n-iterations 1 --eval-freq 0 --eval-limit 2 --experiment-name run"
)
Jobs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """Return a Python with this environment's packages and those of ``ray[default]``."""
    if all(map(find_spec, DASHBOARD)):
        return sys.executable
    folder = tmp_path_factory.mktemp("ray-default")
    venv.create(folder, symlinks=True)
    found, here = str(folder / "bin" / "python"), os.path.dirname(os.path.dirname(find_spec("ray").origin))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    wanted = f"ray[default]=={version('ray')}"
    pip = [sys.executable, "-m", "pip", "--python", found, "install", "--quiet", "--no-compile", wanted]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{wanted} cannot be installed: {done.stderr[-300:]}")
    return found


@pytest.fixture(scope="module")
def jobs(python, tmp_path_factory) -> Iterator[Jobs]:
    """Return a function that runs ``ray job`` for a cluster of two nodes, of which the head has no CPUs."""
    try:
        with Nodes(tmp_path_factory.mktemp("nodes"), python=python, dashboard=True) as nodes:
            nodes.add()
            environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            environment |= {"RAY_API_SERVER_ADDRESS": nodes.dashboard, "RAY_AUTH_MODE": "disabled"}

            def jobs(*arguments: str) -> subprocess.CompletedProcess[str]:
                command = [python, "-m", "ray.scripts.scripts", "job", *arguments]
                return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)

            yield jobs
    except NodeError as error:
        pytest.skip(str(error))


def _train(python: str, folder: Path, *more: str) -> list[str]:
    """Return the command of a short run."""
    return [python, *TRAIN.split(), "--output-directory", str(folder), *more]


def test_a_run_uses_the_cluster_of_its_job(python: str, jobs: Jobs, tiny_model: Path, tmp_path: Path) -> None:
    done = jobs("submit", "--", *_train(python, tmp_path, "--model-name", str(tiny_model)))
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    assert "1 engine of 1 CPU core" in text  # a local Ray would have all cores
    assert re.search(r"^iteration 0  reward mean .* tokens/s", text, re.MULTILINE), text
    assert re.search(r"^run directory +" + re.escape(str(tmp_path / "run")), text, re.MULTILINE), text
    assert re.search(r"Job 'raysubmit_\w+' succeeded", text)
    assert "\r" not in done.stdout  # the log of a job is no terminal
    assert (tmp_path / "run" / "results.json").is_file()
    assert "ray_address" not in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--sigma=-1"], "error: --sigma -1: must be a finite number, greater than 0, at most 10"),
        (["--model-name", "/none"], "error: --model-name /none: no such folder"),
    ],
)
def test_an_error_is_one_line_and_fails_the_job(python: str, jobs: Jobs, tmp_path: Path, flags, error) -> None:
    done = jobs("submit", "--", *_train(python, tmp_path, *flags))
    text = done.stdout + done.stderr
    assert done.returncode == 1, text  # that of `ray job submit` for every failed job
    assert "Job entrypoint command failed with exit code 2" in text
    log = text.partition("Running entrypoint for job")[2].splitlines()
    assert log[1].startswith(error), text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_a_run_whose_job_is_stopped_can_be_resumed(python: str, jobs: Jobs, tiny_model: Path, tmp_path: Path) -> None:
    run, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    command = _train(python, tmp_path, "--model-name", str(tiny_model), "--n-iterations", "5000")
    jobs("submit", "--no-wait", "--submission-id", "stopped", "--", *command)
    for _ in range(120):
        if metrics.exists() and metrics.read_text().count("\n") > 3:
            break
        time.sleep(1)
    stopped = jobs("stop", "stopped")
    assert "Job 'stopped' was stopped" in stopped.stdout + stopped.stderr
    assert f"to resume: esplug train --resume {run}" in jobs("logs", "stopped").stdout
    done = len(metrics.read_text().splitlines())
    again = [python, "-m", "esplug", "train", "--resume", str(run), "--n-iterations", str(done + 2)]
    resumed = jobs("submit", "--", *again)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert len(metrics.read_text().splitlines()) > done

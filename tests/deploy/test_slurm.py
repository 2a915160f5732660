"""The SLURM script, run with stand-ins for SLURM's commands."""

import os
import random
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.helpers.shell import check_shell
from tests.helpers.slurm import NODES

SCRIPT, ROOT = Path("deploy/slurm.sbatch").resolve(), Path(__file__).parents[2]
#: Stand-ins, which run in the job's directory.
SRUN = f'exec {sys.executable} {ROOT}/tests/helpers/slurm.py "$@"'
SCONTROL = f'[[ "$*" == "show hostnames a-list" ]] && printf "%s\\n" {" ".join(NODES)}'
#: Ray that starts nothing, and the check of its nodes.
FAKE_RAY = 'echo "ray on $SLURMD_NODENAME: $*"; touch "ray-$SLURMD_NODENAME"; while :; do sleep 0.2; done'
FAKE_PYTHON = "found=(ray-*); ((${#found[@]} == SLURM_JOB_NUM_NODES)) && [[ -e $found ]]"
PYTHON = f'exec {sys.executable} "$@"'
#: Ray, whose nodes share this machine, and a tiny model instead of the script's.
RAY = f"""exec {sys.executable} -m ray.scripts.scripts "$@" --node-ip-address=$SLURMD_NODENAME \
    --object-store-memory=134217728 --min-worker-port=0 --max-worker-port=0"""
ESPLUG = f"""exec {sys.executable} -m esplug "$@" --task countdown --task-option level=easy --task-option shots=0 \
    --model-name MODEL --dtype float32 --max-tokens 4 --population-size 2 --batch-size 2 --n-iterations 1 \
    --eval-freq 0 --eval-limit 2"""
Run = Callable[..., tuple[int, str]]


def free_job_id() -> int:
    """Return the id of a job whose port is free."""
    while True:
        number = random.randrange(10000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", 20000 + number))
            return 70000 + number


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs the script with the given programs, and returns its status and output."""
    bin_folder = tmp_path / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "activate").write_text(f"PATH={bin_folder}:$PATH\n")

    def run(timeout: float, nodes: int = len(NODES), **programs: str) -> tuple[int, str]:
        for name, command in {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "ray": FAKE_RAY,
            "python": FAKE_PYTHON,
            **programs,
        }.items():
            (bin_folder / name).write_text(f"#!/bin/bash\n{command}\n")
            (bin_folder / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM"))}
        environment |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": str(free_job_id())}
        environment |= {"SLURM_JOB_NODELIST": "a-list", "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CPUS_PER_TASK": "1"}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "160"}
        with (tmp_path / "output").open("w") as output:
            job = subprocess.Popen(
                ["bash", SCRIPT], env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                status = job.wait(timeout)
            finally:
                end_session(job.pid)
        return status, (tmp_path / "output").read_text()

    return run


def end_session(leader: int) -> None:
    """Kill what a job has left, as SLURM does."""
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) == leader:
                process.kill()


def test_it_is_clean_bash() -> None:
    check_shell(SCRIPT.read_text())


@pytest.mark.parametrize(("status", "resumed", "nodes"), [(0, False, 2), (1, True, 2), (143, False, 1)])
def test_the_status_of_esplug_is_that_of_the_job(run: Run, tmp_path: Path, status, resumed, nodes) -> None:
    log = tmp_path / "experiments" / "math-7b" / "seeds.log"
    if resumed:
        log.parent.mkdir(parents=True)
        log.write_text("a header")
    got, output = run(60, nodes, esplug=f'echo "esplug on $SLURMD_NODENAME: $*"; exit {status}')
    assert got == status, output
    started = re.findall(r"^ray on (\S+): start --num-cpus=1 .* --block (.*)$", output, re.MULTILINE)
    port = int(re.findall(r"--port=(\d+)", output)[0])
    assert 20000 <= port < 30000
    assert (
        sorted(started)
        == [
            (NODES[0], f"--head --port={port} --include-dashboard=false"),
            (NODES[1], f"--address=127.0.0.1:{port}"),
        ][:nodes]
    )
    ((node, arguments),) = re.findall(r"^esplug on (\S+): train (.*)$", output, re.MULTILINE)
    assert node == NODES[0]
    assert arguments.endswith(f" --ray-address 127.0.0.1:{port}")
    assert ("--resume experiments/math-7b" in arguments) == resumed
    assert ("--model-name" in arguments) == (not resumed)


def test_a_node_on_which_ray_does_not_start_fails_the_job(run: Run) -> None:
    ray = f'[[ $SLURMD_NODENAME == 127.0.0.1 ]] || {{ echo "no such port"; exit 1; }}; {FAKE_RAY}'
    status, output = run(60, ray=ray, esplug="echo never; exit 0")
    assert status == 1, output
    assert "no such port\n" in output
    assert output.endswith("Ray does not run on all 2 nodes; its own messages are above\n")
    assert "never" not in output


@pytest.mark.vllm
def test_it_trains_on_real_nodes(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    status, output = run(300, ray=RAY, python=PYTHON, esplug=ESPLUG.replace("MODEL", str(tiny_model)))
    assert status == 0, output
    assert "2 engines of 1 CPU core;" in output
    assert (tmp_path / "experiments" / "math-7b" / "results.json").is_file()

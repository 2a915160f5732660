"""A Ray cluster of several real nodes on this machine, each started apart with `ray start`."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

_STARTS, _SECONDS = 2, 90


class NodeError(RuntimeError):
    """Ray itself does not start a node on this machine."""


def _runs(process: subprocess.Popen, log: Path) -> bool:
    """Wait until a node runs. Returns false if it did not start, as on a machine that is too busy."""
    for _ in range(10 * _SECONDS):
        if "Ray runtime started" in log.read_text():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.1)
    return False


def can_hide_folders() -> bool:
    """Whether a process can have a mount namespace of its own, in which folders are hidden."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def free_port() -> int:
    """Return a port that is free on all addresses, because Ray takes another than it is told if that is taken."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Nodes:
    """Nodes with addresses 127.0.0.1, 127.0.0.2 and so on. The first is the head, which has no CPUs for engines.

    With a ``dashboard``, the head takes jobs at that URL; this needs a ``python`` with ``ray[default]``. With
    ``watchful``, Ray notices a node that does not answer within about 10 s instead of 65 s.
    """

    def __init__(
        self, folder: Path, *, python: str = sys.executable, dashboard: bool = False, watchful: bool = False
    ) -> None:
        self._folder, self._processes, self._python = folder, [], python
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])  # of these tests
        self._environment = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": path}
        if watchful:
            self._environment |= {f"RAY_health_check_{name}_ms": "1000" for name in ("initial_delay", "period")}
            self._environment |= {"RAY_health_check_timeout_ms": "3000", "RAY_health_check_failure_threshold": "3"}
        port, jobs = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{jobs}"
        self._temporary = tempfile.mkdtemp(prefix="ray-")  # sockets need a short path
        shown = [f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={jobs}"]
        self.start(["--head", f"--port={port}", *shown, f"--temp-dir={self._temporary}"], cpus=0)

    def add(self, cpus: int = 1, hidden: Sequence[Path] = (), resource: str = "") -> int:
        """Start another node, on which folders are ``hidden``, with a ``resource`` of Ray. Returns its number."""
        resources = [f"--resources={json.dumps({resource: 1})}"] if resource else []
        return self.start([f"--address={self.address}", *resources], cpus, hidden)

    def start(self, arguments: Sequence[str], cpus: int, hidden: Sequence[Path] = ()) -> int:
        number = len(self._processes) + 1
        home = self._folder / f"node-{number}"
        home.mkdir(parents=True)
        command = shlex.join(
            [
                *(self._python, "-m", "ray.scripts.scripts", "start", *arguments, "--block", "--disable-usage-stats"),
                *(f"--num-cpus={cpus}", f"--node-ip-address=127.0.0.{number}", f"--object-store-memory={2**27}"),
                *("--min-worker-port=0", "--max-worker-port=0"),  # any free ones, because the nodes share a machine
            ]
        )
        if hidden:
            mounts = " && ".join(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hidden)
            command = shlex.join(["unshare", "-m", "sh", "-c", f"{mounts} && exec {command}"])
        environment = self._environment | {"XDG_CACHE_HOME": str(home / "cache")}
        for _ in range(_STARTS):
            with (home / "log").open("w") as log:
                process = subprocess.Popen(
                    shlex.split(command), cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            if _runs(process, home / "log"):
                self._processes.append(process)
                return number
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        raise NodeError(f"Ray starts no node here within {_STARTS} x {_SECONDS} s")

    def kill(self, number: int) -> None:
        """Kill a node with all its processes."""
        process = self._processes[number - 1]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def suspend(self, number: int) -> None:
        """Stop a node's raylet, as if the network to it were cut. Its engines go on."""
        (raylet,) = [each for each in self.processes(number) if each.name() == "raylet"]
        raylet.suspend()

    def processes(self, number: int) -> list[psutil.Process]:
        """Return a node's processes that run."""
        parent = psutil.Process(self._processes[number - 1].pid)
        return [parent, *parent.children(recursive=True)]

    def reveal(self, number: int, folder: Path) -> None:
        """Show a folder that was hidden from a node."""
        process = self._processes[number - 1].pid
        subprocess.run(["nsenter", "--target", str(process), "--mount", "umount", folder], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(len(self._processes), 0, -1):
            if self._processes[number - 1].poll() is None:
                self.kill(number)
        shutil.rmtree(self._temporary, ignore_errors=True)

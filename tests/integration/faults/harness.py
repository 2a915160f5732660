"""Harness for fault injection: starts runs at the command line, and checks their outputs afterwards.

All runs of one model in a :class:`Desk` compute the same values with any number of engines, if their number of
iterations is a multiple of ``EVAL_FREQ``. One long undisturbed run is therefore the reference for all shorter ones.
"""

import fcntl
import itertools
import json
import os
import pty
import re
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil

from esplug.checkpoints import seed_log
from esplug.checkpoints.folders import newest_first, verify
from esplug.errors import UserError
from esplug.utils.cores import usable_cores
from tests.helpers.secrets import SECRETS

TASK = """
import os

from esplug import Reward, hookimpl

if os.environ.get("CODES_LINGER"):
    from esplug.engines import EnginePool
    from tests.helpers.lingering_engine import LingeringEngine
    EnginePool.engine = LingeringEngine

@hookimpl
def options():
    return {"equal": False}

@hookimpl
def load_rows(split, path):
    rows = [{"question": f"{split} {i}", "answer": i} for i in range(24)]
    return rows if split == "train" else {"low": rows[:6], "high": rows[2:]}

@hookimpl
def collate(batch):
    return [row["question"] for row in batch], [row["answer"] for row in batch]

@hookimpl
def template(question):
    return [{"role": "user", "content": question}]

@hookimpl
def reward(model_output, target, options):
    codes = [ord(c) % 32 / 32 for c in model_output]
    value = 0.5 if options["equal"] else sum(codes) / max(1, len(codes)) + target / 100
    return Reward(value, "even" if len(codes) % 2 == 0 else "odd")
"""
EVAL_FREQ = 3
SETTINGS = f"""
task = "codes"
population_size = 8
max_tokens = 24
batch_size = 10
eval_freq = {EVAL_FREQ}
checkpoint_every = 2
sigma = 0.02
alpha = 0.4
momentum = 0.3
dtype = "float32"
use_gpus = "none"
gpu_memory_utilization = 0.05
"""
MARK = "ESPLUG_FAULT_MARK"
PORTS = (6379, 8265, 10001, 8000, 29500)
SHOWN, HIDDEN = "\x1b[?25h", "\x1b[?25l"
_numbers = itertools.count()


class Launched:
    """A started command and all its descendant processes.

    Args:
        command: command line.
        folder: working directory; the output goes there too.
        environment: environment variables.
        cores: cores that the process and its descendants may use.
        terminal: give the command a terminal of its own, for :meth:`type`.
    """

    def __init__(
        self, command: Sequence[object], folder: Path, environment: dict[str, str], *, cores: list[int], terminal: bool
    ) -> None:
        self.mark = f"{os.getpid()}-{next(_numbers)}"
        self._output = folder / f"{self.mark}.log"
        self._family: dict[int, psutil.Process] = {}
        self._ended = 0.0
        self._terminal: int | None = None
        arguments: dict[str, Any] = {"cwd": folder, "env": environment | {MARK: self.mark, "COLUMNS": "200"}}
        self._output.touch()

        def prepare() -> None:
            os.sched_setaffinity(0, cores)
            if terminal:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        arguments["preexec_fn"] = prepare
        if terminal:
            self._terminal, slave = pty.openpty()
            arguments |= {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
            self._process = subprocess.Popen(list(map(str, command)), **arguments)
            os.close(slave)
            threading.Thread(target=self._copy, daemon=True).start()
        else:
            with self._output.open("wb") as output:
                streams: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
                self._process = subprocess.Popen(list(map(str, command)), **arguments, **streams)
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def text(self) -> str:
        """Output so far, without the terminal's control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r\n", "\n")

    @property
    def raw(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def engines(self) -> list[psutil.Process]:
        """Return the engines' processes, including those that are being replaced."""
        return [each for each in self._below() if "ray::Engine" in _command(each)]

    def signal(self, number: int) -> None:
        self._below()
        self._process.send_signal(number)

    def type(self, text: str) -> None:
        """Type text on the command's terminal."""
        assert self._terminal is not None
        self._below()
        os.write(self._terminal, text.encode())

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 180.0) -> bool:
        """Wait until a condition holds. Return whether it held before the process ended."""
        deadline = time.monotonic() + seconds
        while self.running:
            if condition():
                return True
            assert time.monotonic() < deadline, f"{seconds:g} s have passed without {what}\n{self.text[-3000:]}"
            time.sleep(0.01)
        return bool(condition())

    def end(self, seconds: float = 180.0) -> int:
        """Wait for the command to end, and return its exit status."""
        try:
            code = self._process.wait(seconds)
            self._ended = self._ended or time.monotonic()
            return code
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s\n{self.text[-3000:]}") from None
        finally:
            if self._terminal is not None:
                time.sleep(0.2)

    def left(self, seconds: float = 90.0, besides: Sequence[str] = ()) -> list[str]:
        """Return the command lines of processes that still run ``seconds`` after the command; at once if none does.

        A command line that contains one of ``besides`` does not count.
        """
        deadline = self._ended + seconds
        while True:
            marked = f"{MARK}={self.mark}".encode()
            alive = {each.pid: _command(each) for each in self._family.values() if _lives(each)}
            for place in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if marked in (place / "environ").read_bytes().split(b"\0"):
                        alive[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            counted = sorted(each for each in alive.values() if not any(name in each for name in besides))
            if not counted or time.monotonic() > deadline:
                return counted
            time.sleep(0.2)

    def terminal_is_sane(self) -> bool:
        """Return whether the terminal echoes input line by line and shows the cursor."""
        assert self._terminal is not None
        modes = termios.tcgetattr(self._terminal)[3]
        return bool(modes & termios.ECHO and modes & termios.ICANON) and self.raw.rfind(SHOWN) >= self.raw.rfind(HIDDEN)

    def kill(self) -> None:
        """Kill the command and its descendants."""
        for each in [*self._below(), self._process]:
            with suppress(psutil.Error, ProcessLookupError):
                each.kill()

    def _below(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            found = psutil.Process(self.pid).children(recursive=True)
            self._family |= {each.pid: each for each in found}
            return found
        return []

    def _watch(self) -> None:
        while self.running:
            self._below()
            time.sleep(0.3)

    def _copy(self) -> None:
        with self._output.open("ab", buffering=0) as output, suppress(OSError):
            while data := os.read(self._terminal or 0, 65536):
                output.write(data)


@dataclass
class Desk:
    """A folder with a task, a model and settings, from which runs are started.

    Attributes:
        folder: where everything is written, except runs with another output directory.
        model: folder of a tiny model.
    """

    folder: Path
    model: Path

    def __post_init__(self) -> None:
        metadata = self.folder / "site" / "codes-0.1.dist-info"
        metadata.mkdir(parents=True, exist_ok=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: codes\nVersion: 0.1\n")
        (metadata / "entry_points.txt").write_text("[esplug.tasks]\ncodes = codes_task\n")
        (self.folder / "site" / "codes_task.py").write_text(TASK)
        (self.folder / "settings.toml").write_text(SETTINGS + f'model_name = "{self.model.absolute()}"\n')
        self.launched: list[Launched] = []

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def start(
        self, run: Path, iterations: int, *arguments: object, engines: int = 1, terminal: bool = False
    ) -> Launched:
        """Start a new run."""
        place = ("--experiment-name", run.name, "--output-directory", run.parent)
        settings = ("--config", "settings.toml", *place, "--n-iterations", iterations)
        return self._train(*settings, *arguments, engines=engines, terminal=terminal)

    def resume(self, run: Path, *arguments: object, engines: int = 1, terminal: bool = False) -> Launched:
        """Resume a run."""
        return self._train("--resume", run, *arguments, engines=engines, terminal=terminal)

    def _train(self, *arguments: object, engines: int, terminal: bool) -> Launched:
        """Start the command line on one core per engine.

        Threads that wait for each other are slow on cores that other runs share.
        """
        paths = [str(self.folder / "site"), str(Path(__file__).parents[3])]
        environment = os.environ | SECRETS | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "esplug", "train", *arguments, "--n-vllm-engines", engines]
        usable = usable_cores()
        cores = [usable[(len(self.launched) + i) % len(usable)] for i in range(engines)]
        self.launched.append(Launched(command, self.folder, environment, cores=cores, terminal=terminal))
        return self.launched[-1]

    def undisturbed(self, iterations: int) -> Path:
        """Run without faults, as the reference for all other runs."""
        run = self.runs / "undisturbed"
        launched = self.start(run, iterations)
        assert launched.end(300) == 0, launched.text
        assert launched.left() == []
        return run

    def nothing_left(self) -> None:
        """Assert that all started processes have ended. After a SIGKILL, Ray's agents need about a minute."""
        for launched in self.launched:
            assert launched.left() == []

    def close(self) -> None:
        """Kill the processes that a failed check has left running."""
        for launched in self.launched:
            launched.kill()


# --- outputs of a run -----------------------------------------------------------------------------------------


def done(run: Path) -> int:
    """Return the number of iterations in a run's seed log."""
    with suppress(UserError, OSError):
        return len(seed_log.read(run / "seeds.log").steps)
    return 0


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def record_of(run: Path, iterations: int) -> dict[str, Any]:
    """Read a run's outputs for its first iterations and the evaluation after them, without times."""
    outputs = {}
    for file in run.glob("*-output/*.json"):
        number = re.search(r"iteration(\d+)\.json", file.name)
        assert number, file
        if int(number[1]) < iterations + file.name.startswith("model_eval"):
            outputs[file.name] = without_times(json.loads(file.read_text()))
    listed = [row for row in rows(run) if row["step"] < iterations + ("train/reward/mean" not in row)]
    return outputs | {"rows": without_times(listed), "steps": seed_log.read(run / "seeds.log", iterations).steps}


def without_times(record: Any) -> Any:
    """Drop measured times, speeds, usage of memory, and which engines did the work."""
    if isinstance(record, dict):
        timed = ("_seconds", "_per_second")
        return {
            key: without_times(value)
            for key, value in record.items()
            if not key.endswith(timed) and not key.startswith(("time/", "system/")) and key not in ("time", "engines")
        }
    return [without_times(item) for item in record] if isinstance(record, list) else record


def check(run: Path, undisturbed: Path, iterations: int, *, gaps: bool = False) -> int:
    """Assert that a run ended as if there had been no fault.

    Args:
        run: directory of the run.
        undisturbed: directory of a run without faults, at least as long.
        iterations: planned iterations of the run.
        gaps: allow missing records and rows of metrics, but no missing updates.

    Returns:
        Number of missing records and rows.

    Raises:
        AssertionError: an output is missing, duplicated, different or left over.
    """
    expected, found = record_of(undisturbed, iterations), record_of(run, iterations)
    listed, was = found.pop("rows"), expected.pop("rows")
    kinds = [[(row["step"], "train/reward/mean" in row) for row in each] for each in (was, listed)]
    assert len(set(kinds[1])) == len(kinds[1]), f"{run}: doubled rows in metrics.jsonl: {kinds[1]}"
    if not gaps:
        assert kinds[0] == kinds[1], f"{run}: other rows in metrics.jsonl: {kinds[1]}"
        assert expected.keys() == found.keys(), f"{run}: files differ: {sorted(expected.keys() ^ found.keys())}"
    assert all(row in was for row in listed), f"{run}: rows of metrics differ from the undisturbed run's"
    for name, content in found.items():
        assert expected[name] == content, f"{run}: {name} differs from the undisturbed run's"
    final = run / "checkpoints" / f"checkpoint-es_fine_tuned_iteration_{iterations}"
    assert (final / "model.safetensors").exists(), f"{run}: no final model"
    for folder in (final, *(folder for _, folder in newest_first(run / "checkpoints"))):
        verify(folder)
    leftovers = [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix in (".part", ".old")]
    assert leftovers == [], leftovers
    return len(was) - len(listed) + len(expected) - len(found)


def lost(run: Path) -> int:
    """Return the number of metrics rows that were computed again."""
    aside = run / "metrics.replaced.jsonl"
    return len(aside.read_text().splitlines()) if aside.exists() else 0


# --- moments ---------------------------------------------------------------------------------------------------


def reach(launched: Launched, run: Path, phase: str, draw: Random) -> None:
    """Wait for a random moment of a phase, or for the command to end.

    The phases are ``start`` (libraries, Ray, engines), ``training`` (any moment), ``evaluation``, ``saving`` (a full
    checkpoint) and ``end`` (final model, last evaluation, shutdown).
    """
    if phase == "start":
        pause(launched, draw.uniform(2, 18))
        return
    before, more = done(run), draw.randint(1, 3)
    if phase == "training":
        launched.until(lambda: done(run) >= before + more, f"iteration {before + more}")
        pause(launched, draw.uniform(0, 0.6))
    elif phase == "evaluation":
        goal = (before // EVAL_FREQ + 1) * EVAL_FREQ
        launched.until(lambda: done(run) >= goal, f"iteration {goal}")
        pause(launched, draw.uniform(0, 0.15))
    elif phase == "saving":
        launched.until(lambda: done(run) > before, "an iteration")
        launched.until(lambda: any((run / "checkpoints").glob(".iteration-*.part")), "a checkpoint being written")
    else:
        launched.until(lambda: any((run / "checkpoints").glob("*checkpoint-es_fine_tuned*")), "the final model")
        pause(launched, draw.uniform(0, 1.5))


def pause(launched: Launched, seconds: float) -> None:
    """Wait for so many seconds, or until the command ends."""
    deadline = time.monotonic() + seconds
    while launched.running and time.monotonic() < deadline:
        time.sleep(0.005)


# --- environment ---------------------------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size: str = "16m") -> Iterator[Path | None]:
    """Mount a small disk; give ``None`` if mounting is not allowed."""
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    try:
        yield None if mounted.returncode else place
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def ballast(disk: Path, leave: int) -> Iterator[None]:
    """Fill a disk except for so many bytes, rounded down to pages."""
    file = disk / "ballast"
    state = os.statvfs(disk)
    try:
        with file.open("wb") as full, suppress(OSError):
            os.posix_fallocate(full.fileno(), 0, max(1, state.f_bavail * state.f_frsize - leave))
        yield
    finally:
        file.unlink()


@contextmanager
def occupied(ports: Sequence[int] = PORTS) -> Iterator[int]:
    """Listen on the ports that are free; give the number of ports that are now in use."""
    with ExitStack() as stack:
        in_use = 0
        for port in ports:
            listener = stack.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind(("", port))
                listener.listen()
            in_use += 1
        yield in_use


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

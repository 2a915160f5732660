"""Sandbox: runs untrusted Python in processes that can neither harm the machine nor learn how they are graded.

``bubblewrap`` gives each run namespaces of its own: no network, no file but Python's standard library and an empty
folder in memory, no other process. ``rlimits`` has the same limits and the same filter of system calls, but the run
sees the user's files. Both bound processor time, wall time, memory, output, files and processes.
"""

import contextlib
import marshal
import math
import os
import resource
import secrets
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from esplug_tasks_code.syscalls import SyscallFilter

KINDS = ("bubblewrap", "rlimits")
MAX_FILE = 4 << 20  # bytes of the output, and of each file
MAX_FOLDER = 16 << 20  # bytes of all files that a program writes in bubblewrap
PATIENCE = 5  # wall seconds per second of processor time, because other processes may be busy
GRACE = 2.0  # seconds for a process to end once it has nothing to wait for

_FOLDER, _SCRIPTS = "/tmp", "/scripts"
_MIB = 1 << 20
_HERE = Path(__file__).parent
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


class SandboxError(RuntimeError):
    """The sandbox itself failed, so that nothing is known about the answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run."""

    seconds: float = 2.0  #: of processor time, rounded up; a run may take :data:`PATIENCE` times as long
    memory: int = 512  #: MiB of address space


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind."""

    output: bytes  #: of standard output, at most :data:`MAX_FILE` bytes
    code: int  #: exit status; negative for a signal
    timed_out: bool  #: whether a limit of time ended it


@dataclass(frozen=True, slots=True)
class Replies:
    """What a run replied to calls."""

    #: for each call, the encoded value (see :func:`esplug_tasks_code.judge.decode`); ``None`` after an exception
    values: list[bytes | None]
    timed_out: bool  #: whether a limit of time ended it


class Sandbox:
    """Runs answers, one at a time.

    Args:
        kind: ``bubblewrap`` or ``rlimits``.
        limits: of each run.

    Raises:
        OSError: ``bwrap`` or libseccomp is not installed.
    """

    def __init__(self, kind: str = "bubblewrap", limits: Limits | None = None) -> None:
        self.kind, self.limits = kind, limits or Limits()
        self._python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
        self._filter = SyscallFilter()
        self.filter_program = self._filter.program()  #: for ``bwrap --seccomp``
        self._wrapper: list[str] = []
        if kind == "bubblewrap":
            program = shutil.which("bwrap")
            if program is None:
                raise FileNotFoundError("bwrap is not installed")
            self._wrapper = [program, *_namespaces(), *_files(self._python)]

    def program(self, source: str, stdin: str) -> Outcome:
        """Run a main program with text on standard input."""
        with _Run(self) as run:
            process = run.start("solver.py", "program", run.file(_bytes(source)), stdin=run.file(_bytes(stdin)))
            return run.wait(process)

    def calls(self, source: str, calls: Sequence[tuple[str, list[Any]]]) -> Replies:
        """Define the functions of a source and call them, in one process.

        Args:
            source: Python code.
            calls: names of functions, and their arguments.
        """
        secret = secrets.token_hex(16).encode()
        messages: list[Any] = [secret, *((name, arguments, {}) for name, arguments in calls)]
        with _Run(self) as run:
            requests = run.file(b"".join(map(marshal.dumps, messages)))
            outcome = run.wait(run.start("solver.py", "calls", run.file(_bytes(source)), stdin=requests))
        lines = [line for line in outcome.output.split(b"\n")[:-1] if line.startswith(secret)]
        replies = [line[len(secret) + 1 :] if line[len(secret) :][:1] == b"=" else None for line in lines]
        values = [*replies, *[None] * len(messages)][1 : len(messages)]  # the first reply is about the source
        return Replies(values, outcome.timed_out)

    def assertions(self, source: str, tests: str, names: Mapping[str, str]) -> Outcome:
        """Run a data set's assertions against the functions of a source, each in a sandbox of its own.

        Args:
            source: Python code of the answer.
            tests: Python code that reports to ``__verdict__``.
            names: the answer's functions, by the names that the tests call.

        Returns:
            The outcome of the tests: their verdicts, as :mod:`esplug_tasks_code.judge` writes them.
        """
        secret = secrets.token_hex(16).encode()
        with _Run(self) as run:
            requests, to_answer = run.pipe()
            from_answer, replies = run.pipe()
            answer = run.start("solver.py", "calls", run.file(_bytes(source)), stdin=requests, stdout=replies)
            message = marshal.dumps((secret, tests, dict(names), to_answer, from_answer))
            judge = run.start("judge.py", run.file(message), stdin=run.file(b""), keep=(to_answer, from_answer))
            for descriptor in (requests, replies, to_answer, from_answer):
                run.close(descriptor)
            return run.wait(judge, asked=answer)

    def command(self, script: str, filter_file: int) -> list[str]:
        """Return the command that runs a script of this package, without the script's arguments."""
        python = [self._python, "-S", "-s", "-P", "-B"]
        if self.kind == "rlimits":
            return [*python, str(_HERE / script)]
        inside = f"{_SCRIPTS}/{script}"
        script_file = ["--ro-bind", str(_HERE / script), inside]
        return [*self._wrapper, *script_file, "--remount-ro", "/", "--seccomp", str(filter_file), *python, inside]

    def restrict(self) -> None:
        """Limit this process, which is about to become the sandbox."""
        cpu = math.ceil(self.limits.seconds)
        limits = {"CPU": cpu, "AS": self.limits.memory * _MIB, "FSIZE": MAX_FILE, "NOFILE": 64, "CORE": 0}
        for name, limit in limits.items():
            _, hard = resource.getrlimit(number := getattr(resource, f"RLIMIT_{name}"))
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(number, (limit, limit))
        if self.kind == "rlimits":
            self._filter.load()


class _Run:
    """Processes and files of one run, all of which end with it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._stack = contextlib.ExitStack()
        self._files: dict[int, IO[bytes]] = {}
        self._outputs: dict[int, tuple[int, int]] = {}
        self._folder, self._home = "/", _FOLDER

    def __enter__(self) -> "_Run":
        if self._sandbox.kind == "rlimits":
            self._folder = self._home = self._stack.enter_context(_temporary_folder())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def file(self, content: bytes) -> int:
        """Return the descriptor of a file in memory."""
        descriptor = os.memfd_create("sandbox")
        self._own(descriptor)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def pipe(self) -> tuple[int, int]:
        """Return the descriptors of a pipe: to read, to write."""
        ends = os.pipe()
        for descriptor in ends:
            self._own(descriptor)
        return ends

    def close(self, descriptor: int) -> None:
        """Close a descriptor that only the processes need."""
        self._files.pop(descriptor).close()

    def start(
        self, script: str, *arguments: object, stdin: int, stdout: int | None = None, keep: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a script of this package in the sandbox."""
        output, errors = self.file(b"") if stdout is None else stdout, self.file(b"")
        filter_file = self.file(self._sandbox.filter_program)
        files = [argument for argument in arguments if isinstance(argument, int)]
        process = subprocess.Popen(
            [*self._sandbox.command(script, filter_file), *map(str, arguments)],
            stdin=stdin,
            stdout=output,
            stderr=errors,
            cwd=self._folder,
            env=_ENVIRONMENT | dict.fromkeys(("HOME", "TMPDIR"), self._home),
            pass_fds=[*files, *keep, filter_file],
            start_new_session=True,
            preexec_fn=self._sandbox.restrict,
        )
        self._stack.callback(_kill, process)
        self._outputs[process.pid] = output, errors
        return process

    def wait(self, process: subprocess.Popen[bytes], asked: subprocess.Popen[bytes] | None = None) -> Outcome:
        """Wait until a process ends, but not longer than its limit.

        Args:
            process: whose outcome counts.
            asked: another process, which replies to the first. It is ended at the limit, so that the first can finish.

        Raises:
            SandboxError: the sandbox could not be set up.
        """
        in_time = self._ends(process, self._sandbox.limits.seconds * PATIENCE)
        if asked is not None:
            if in_time:
                self._ends(asked, GRACE)
            _kill(asked)
            self._ends(process, GRACE)
        _kill(process)
        for _, errors in self._outputs.values():
            if (said := os.pread(errors, MAX_FILE, 0)).startswith(b"bwrap: "):
                raise SandboxError(said.decode(errors="replace").strip())
        output, _ = self._outputs[process.pid]
        timed_out = not in_time or _was_killed(process) or (asked is not None and _was_killed(asked))
        return Outcome(os.pread(output, MAX_FILE, 0), process.returncode, timed_out)

    def _ends(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Wait for a process that was not reaped yet, and return whether it has ended."""
        self._own(descriptor := os.pidfd_open(process.pid))
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _own(self, descriptor: int) -> None:
        self._files[descriptor] = self._stack.enter_context(os.fdopen(descriptor, "rb", buffering=0))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started: bubblewrap's namespace of processes ends with it."""
    if process.returncode is None:
        process.kill()
        process.wait()


def _was_killed(process: subprocess.Popen[bytes]) -> bool:
    return process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="esplug-code-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # does not follow symbolic links


def _namespaces() -> list[str]:
    return ["--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]


def _files(python: str) -> list[str]:
    """Return the options that show Python and its standard library, without installed packages, and nothing else."""
    library = os.path.join(sys.base_prefix, "lib")
    paths = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", library, python]
    options = [option for path in paths for option in ("--ro-bind-try", path, path)]
    standard = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})
    hidden = [f"{standard}/site-packages", f"{standard}/dist-packages", "/usr/lib/python3/dist-packages"]
    for folder in filter(os.path.isdir, hidden):
        options += ["--tmpfs", folder, "--remount-ro", folder]
    device = ["--dev-bind", os.devnull, os.devnull]
    return [*options, *device, "--size", str(MAX_FOLDER), "--tmpfs", _FOLDER, "--chdir", _FOLDER]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")

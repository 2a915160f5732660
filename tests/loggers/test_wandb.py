"""Logger ``wandb``: offline runs, resumed runs and servers that fail."""

import json
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from esplug.loggers.wandb import WandbLogger


def wandb_process(code: str, tmp_path: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    pytest.importorskip("wandb")
    setup = """
        from pathlib import Path
        from types import SimpleNamespace
        import wandb
        from esplug.loggers.logger_set import LoggerSet
        config = SimpleNamespace(
            wandb_project="tests",
            experiment_name=None,
            notes="why",
            tags=["first", "cpu"],
            model_dump=lambda: {"sigma": 0.001, "folder": Path("x")},
        )
        loggers = LoggerSet(["wandb"])
        run_dir = Path("run-7")
        run_dir.mkdir(exist_ok=True)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(setup) + textwrap.dedent(code)],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


SAMPLE = """
        row = {"split": "easy", "index": 0, "sample": 0, "prompt": [{"role": "user"}], "target": {1, 2},
               "output": "x", "reward": 1.0, "label": "right"}
"""


def test_wandb_offline(tmp_path: Path) -> None:
    code = """
        loggers.start(config, run_dir)
        assert (wandb.run.project, wandb.run.name) == ("tests", "run-7")
        loggers.samples(0, [row, row | {"prompt": "text", "target": "2"}])
        loggers.samples(0, [row | {"split": "hard"}])
        loggers.log(0, {"train/reward/mean": 0.5})
        loggers.log(1, {"train/reward/mean": 0.75})
        loggers.finish("interrupted")
        assert wandb.run is None
    """
    run = wandb_process(SAMPLE + code, tmp_path, WANDB_MODE="offline")
    assert "failed [" not in run.stderr
    (kept,) = (tmp_path / "run-7" / "wandb").glob("offline-run-*")
    records = list(wandb_records(next(kept.glob("*.wandb"))))
    (opened,) = [record.run for record in records if record.HasField("run")]
    assert (opened.project, opened.display_name) == ("tests", "run-7")
    assert (opened.notes, list(opened.tags)) == ("why", ["first", "cpu"])
    assert {item.key: json.loads(item.value_json) for item in opened.config.update}["sigma"] == 0.001
    logged = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    assert [(row["_step"], row["train/reward/mean"]) for row in logged] == [(0, 0.5), (1, 0.75)]
    tables = {
        split: json.loads((kept / "files" / logged[0][f"samples/{split}.path"]).read_text())
        for split in ("easy", "hard")
    }
    assert tables["easy"]["columns"] == ["prompt", "target", "answer", "reward", "label"]
    assert tables["easy"]["data"] == [
        ['[{"role": "user"}]', '"{1, 2}"', "x", 1.0, "right"],
        ["text", "2", "x", 1.0, "right"],
    ]
    assert len(tables["hard"]["data"]) == 1
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]


def wandb_records(path: Path) -> Iterator[Any]:
    """Read the file of an offline run: 32 KiB blocks of chunks, each with checksum, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no room for a header
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of it, or its last piece
            yield Record.FromString(whole)
            whole = b""


def test_wandb_resumes_its_own_run_and_leaves_the_users_run_alone(tmp_path: Path) -> None:
    code = """
        mine = wandb.init(project="mine", dir=".")
        loggers.start(config, run_dir)
        loggers.log(0, {"train/reward/mean": 0.5})
        loggers.finish("finished")
        assert wandb.run is mine
        mine.log({"a": 1})
        mine.finish()
    """
    runs = [wandb_process(code, tmp_path, WANDB_MODE="offline") for _ in range(2)]
    assert not any("failed [" in run.stderr for run in runs)
    identity = (tmp_path / "run-7" / "wandb-run-id").read_text().strip()
    assert len(list((tmp_path / "run-7" / "wandb").glob(f"offline-run-*-{identity}"))) in (1, 2)  # 1 in one second


class FakeRun:
    """The part of a W&B run that the logger uses."""

    def __init__(self, step: int) -> None:
        self.step, self.logged = step, [-1]

    def log(self, values: object, step: int) -> None:
        self.step = step
        self.logged.append(step)


def test_wandb_does_not_repeat_steps_that_its_run_has() -> None:
    logger, run = WandbLogger(), FakeRun(step=4)
    logger._run = run
    for step in (2, 3, 4, 4, 5):
        logger.log(step, {})
    assert run.logged == [-1, 4, 4, 5]


@pytest.mark.parametrize("answering_server", ["http", "https"], indirect=True)
def test_wandb_without_login_fails_at_once(tmp_path: Path, answering_server: str) -> None:
    """A server whose certificate urllib does not trust counts as reachable."""
    code = """
        from esplug.errors import PluginError
        try:
            loggers.start(config, run_dir)
        except PluginError as error:
            print(error)
    """
    run = wandb_process(code, tmp_path, WANDB_BASE_URL=answering_server)
    last = run.stdout.splitlines()[-1]
    assert "[no API key]; run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline" in last


@pytest.mark.parametrize("answering_server", ["https"], indirect=True)
def test_wandb_is_offline_if_it_does_not_trust_the_server(tmp_path: Path, answering_server: str) -> None:
    code = """
        loggers.start(config, run_dir)
        loggers.log(0, {"train/reward/mean": 0.5})
        loggers.finish("finished")
    """
    run = wandb_process(code, tmp_path, WANDB_BASE_URL=answering_server, WANDB_API_KEY="0" * 40)
    assert f"logger 'wandb' does not reach {answering_server} [CommError: " in run.stderr
    (kept,) = (tmp_path / "run-7" / "wandb").glob("offline-run-*")
    assert f"wandb sync {kept.relative_to(tmp_path)}" in run.stderr


@pytest.fixture
def answering_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A server with the same answer to every request, over HTTP or HTTPS with a self-signed certificate."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        if request.param == "https":
            key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
            command = (
                "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
            )
            subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{request.param}://127.0.0.1:{server.server_port}"
        server.shutdown()

"""Loggers that hang, raise, flood, die or have no server: five runs of each lose little time and no row."""

import gzip
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

RUNS, STEPS = 5, 6
WAIT = 5.0  # seconds by which loggers may delay a run
IMPORT = 4.0  # seconds to import wandb and start its service, five times at once on two cores
five_times = pytest.mark.fault("logger that hangs, raises or has no server", RUNS, "5 s at most, and what it logs")

SETUP = """
    import logging, os, sys, time
    from concurrent.futures import wait
    from pathlib import Path
    from types import SimpleNamespace
    from esplug.loggers import logger_set
    from esplug import hookimpl
    from esplug.plugins import PluginInfo
    from esplug.plugins.loading import relay

    class Bad:
        def __init__(self, do, *hooks):
            self.do, self.hooks = do, hooks
        def call(self, hook):
            if hook in self.hooks:
                self.do()
        @hookimpl
        def start(self): self.call("start")
        @hookimpl
        def log(self): self.call("log")
        @hookimpl
        def samples(self): self.call("samples")
        @hookimpl
        def finish(self): self.call("finish")

    def hang(): time.sleep(1000)
    def spin():
        while True: pass
    def flood():
        while True: print("flood " * 50)
    def fail(): raise RuntimeError("no space left")
    def leave(): sys.exit(3)
    def interrupt(): raise KeyboardInterrupt
    def kill_service():
        import psutil
        for child in psutil.Process().children():
            child.kill()

    sample = {
        "split": "s", "index": 0, "sample": 0, "prompt": "x", "target": "y", "output": "z", "reward": 0.5, "label": ""
    }
    held, logging_took, bad = 0.0, 0.0, {}
    real = logger_set.load
    logger_set.load = lambda kind, name: (
        relay(bad[name], PluginInfo("logger", name, "tests", "1", "tests")) if name in bad else real(kind, name)
    )
    config = SimpleNamespace(
        notes=None,
        tags=[],
        wandb_project="tests", experiment_name=None, eval_freq=2, n_iterations=6, model_dump=lambda: {"sigma": 0.001}
    )

    def timed(call, *arguments):
        global held, logging_took
        began = time.monotonic()
        call(*arguments)
        took = time.monotonic() - began
        held += took
        if call.__name__ in ("log", "samples"):
            logging_took += took

    def ready():
        wait([logger.started for logger in loggers._background], 40)

    def run(names, between=lambda step: None, samples=True):
        global loggers
        loggers = logger_set.LoggerSet([*names, "jsonl"])
        timed(loggers.start, config, Path.cwd())
        for step in range(6):
            timed(loggers.log, step, {"train/reward/mean": 0.5})
            if samples:
                timed(loggers.samples, step, [sample])
            between(step)
        timed(loggers.finish, "finished")
        Path("held").write_text(f"{held} {logging_took} {time.time()}")
"""


@dataclass(frozen=True)
class Outcome:
    """Result of one run in its own process: delays in seconds, in all and during training, and outputs."""

    held: float
    training: float
    exit: float
    returncode: int
    warnings: list[str]
    steps: list[int]


def one(folder: Path, code: str, env: dict[str, str]) -> Outcome:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SETUP) + textwrap.dedent(code)],
        cwd=folder,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin", "WANDB_API_KEY": "ab" * 20, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    ended = time.time()
    assert (folder / "held").exists(), done.stderr
    held, training, finished = map(float, (folder / "held").read_text().split())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("logger ")]
    return Outcome(held, training, ended - finished, done.returncode, warnings, [row["step"] for row in rows])


def five(tmp_path: Path, code: str, margin: float = 2.0, **env: str) -> list[Outcome]:
    """Run the code five times at once; no run may be delayed for longer, or lose a row."""
    with ThreadPoolExecutor(RUNS) as pool:
        outcomes = list(pool.map(lambda i: one(tmp_path / str(i), code, env), range(RUNS)))
    margin *= max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # a busy machine is slow by itself
    for outcome in outcomes:
        assert outcome.returncode == 0, outcome
        assert outcome.steps == list(range(STEPS))
        assert outcome.held + outcome.exit <= WAIT + margin, outcome
        assert len(outcome.warnings) == len(set(outcome.warnings))
    return outcomes


@five_times
@pytest.mark.parametrize("kind", ["hang", "spin", "flood"])
def test_loggers_that_never_return(tmp_path: Path, kind: str) -> None:
    """One logger hangs in each hook at once; they share the wait."""
    code = f"""
        bad |= {{hook: Bad({kind}, hook) for hook in ("log", "samples", "finish")}}
        run(bad)
    """
    margin = 2.0 if kind == "hang" else 4.0  # two of them compete with the run for the GIL
    for outcome in five(tmp_path, code, margin):
        lost = {"log": 12, "samples": 11, "finish": 0}
        assert sorted(outcome.warnings) == sorted(
            f"logger {hook!r} hangs in {hook}; the run ends without it, and {n} of its calls are lost"
            for hook, n in lost.items()
        )


@five_times
def test_loggers_that_hang_in_their_start(tmp_path: Path) -> None:
    code = """
        bad |= {"one": Bad(hang, "start"), "two": Bad(hang, "start", "finish")}
        run(bad)
    """
    for outcome in five(tmp_path, code):
        assert [line.split()[1:4] for line in outcome.warnings] == [
            [name, *words.split()] for words in ("is not", "hangs in") for name in ("'one'", "'two'")
        ]


@five_times
@pytest.mark.parametrize("kind", ["fail", "leave", "interrupt"])
def test_loggers_that_raise(tmp_path: Path, kind: str) -> None:
    code = f"""
        bad |= {{hook: Bad({kind}, hook) for hook in ("log", "samples", "finish")}}
        bad["each"] = Bad({kind}, "log", "samples", "finish")
        run(bad)
    """
    for outcome in five(tmp_path, code):
        assert len(outcome.warnings) == 4
        assert all(" failed [" in line for line in outcome.warnings)
        assert outcome.held < WAIT


# --- wandb -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_server() -> Iterator[str]:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers, as behind a firewall."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


@five_times
@pytest.mark.parametrize("server", ["no_server", "silent_server"])
def test_wandb_without_its_server_keeps_the_run_here(
    tmp_path: Path, server: str, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("wandb")
    url = request.getfixturevalue(server)
    code = """
        run(["wandb"], lambda step: ready())
    """  # as in any run of more than a few seconds
    for i, outcome in enumerate(five(tmp_path, code, IMPORT, WANDB_BASE_URL=url)):
        assert outcome.training < 0.3 * STEPS  # waiting for a busy disk to store each row
        (kept,) = (tmp_path / str(i) / "wandb").glob("offline-run-*")
        assert list(kept.glob("*.wandb"))
        (line,) = [line for line in outcome.warnings if f"does not reach {url} [" in line]
        assert line.endswith(f"wandb sync {kept}")


@five_times
def test_wandb_whose_service_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = """
        run(["wandb"], lambda step: (ready(), kill_service()) if step == 2 else None)
    """
    for outcome in five(tmp_path, code, IMPORT, WANDB_MODE="offline"):
        assert any(line.startswith(("logger 'wandb' failed [", "logger 'wandb' hangs")) for line in outcome.warnings)


def test_wandb_whose_server_falls_silent(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    code = """
        run(["wandb"], lambda step: (ready(), Path("silence").touch()) if step == 2 else None, samples=False)
    """  # a table would block on the server, and so would later calls
    with ThreadingHTTPServer(("127.0.0.1", 0), Wandb) as server:
        server.daemon_threads = True
        server.silence = tmp_path / "0" / "silence"  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        outcome = one(tmp_path / "0", code, {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}"})
        server.shutdown()
    assert outcome.steps == list(range(STEPS))
    assert outcome.returncode == 0
    assert outcome.held <= WAIT + IMPORT
    assert outcome.exit <= WAIT
    (kept,) = (tmp_path / "0" / "wandb").glob("run-*")
    assert outcome.warnings == [
        f"logger 'wandb' has not sent all of the run in time; to send the rest: wandb sync {kept}"
    ]


class Wandb(BaseHTTPRequestHandler):
    """The parts of a W&B server that a run needs; it stops answering when the file ``silence`` exists."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        while self.server.silence.exists():  # type: ignore[attr-defined]
            time.sleep(1)
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer = json.dumps({"data": self.answer(json.loads(body))} if self.path == "/graphql" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_PUT = do_POST  # noqa: N815

    def answer(self, question: Any) -> dict[str, Any]:
        query, project = question["query"], {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if "UpsertBucket" in query:
            name = question["variables"]["name"]
            bucket = {"id": "b", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_address[1]}/upload"
            files = [{"name": name, "uploadUrl": url} for name in question["variables"]["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "ResumeStatus" in query:
            return {"model": {**project, "bucket": None}}
        viewer = {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}, "email": "u@e"}
        return {"viewer": viewer, "serverInfo": {"features": []}}

    def log_message(self, *_: object) -> None:
        pass

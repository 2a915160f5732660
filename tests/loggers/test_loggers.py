"""Built-in loggers, and the logger set, which keeps loggers from stopping a run."""

import json
import logging
import math
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug import hookimpl
from esplug.config import make_config
from esplug.errors import PluginError, UserError
from esplug.loggers.jsonl import JsonlLogger
from esplug.loggers.logger_set import LoggerSet
from esplug.loggers.wandb import WandbLogger
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay

CONFIG = make_config({"wandb_project": "tests", "experiment_name": "one", "eval_freq": 5, "n_iterations": 12})
METRICS = {
    "train/reward/mean": 0.3125,
    "train/reward/min": -1.0,
    "train/reward/max": 1.0,
    "train/reward/std": 0.25,
    "train/tokens_per_second": 1114.2,
    "time/iteration": 58.06,
    "time/generate": 50.0,
}


class Recorder:
    """A logger that records its calls, and fails or waits in some of them."""

    def __init__(
        self,
        *failing: str,
        error: BaseException | None = None,
        synchronous: bool = False,
        gates: Mapping[str, threading.Event] | None = None,
    ) -> None:
        self.calls: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.synchronous = synchronous
        self._failing = failing
        self._gates = gates or {}
        self._error = error or RuntimeError("no space\nleft")

    def _record(self, hook: str) -> None:
        self.calls.append(hook)
        self.threads.add(threading.current_thread())
        if hook in self._gates:
            self._gates[hook].wait(60)
        if hook in self._failing:
            raise self._error

    @hookimpl
    def start(self) -> None:
        self._record("start")

    @hookimpl
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._record("log")

    @hookimpl
    def samples(self) -> None:
        self._record("samples")

    @hookimpl
    def finish(self, status: str) -> None:
        self._record("finish " + status)


Use = Callable[..., LoggerSet]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    def use(**loggers: Recorder) -> LoggerSet:
        def load(kind: str, name: str) -> object:
            return relay(loggers[name], PluginInfo("logger", name, "tests", "1", "tests"))

        monkeypatch.setattr("esplug.loggers.logger_set.load", load)
        return LoggerSet(loggers)

    return use


def run_through(loggers: LoggerSet, run_dir: Path) -> None:
    loggers.start(CONFIG, run_dir)
    loggers.log(0, METRICS)
    loggers.log(1, METRICS)
    loggers.samples(1, [])
    loggers.finish("finished")


def test_every_logger_gets_every_call(use: Use, tmp_path: Path) -> None:
    one, two = Recorder(), Recorder()
    loggers = use(one=one, two=two)
    run_through(loggers, tmp_path)
    loggers.finish("failed")
    assert one.calls == two.calls == ["start", "log", "log", "samples", "finish finished"]


def test_a_duplicate_name_is_ignored(tmp_path: Path) -> None:
    loggers = LoggerSet(["jsonl", "none", "jsonl"])
    loggers.start(CONFIG, tmp_path)
    loggers.log(0, {"a": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_unknown_logger() -> None:
    with pytest.raises(PluginError, match="did you mean 'jsonl'"):
        LoggerSet(["console", "json"])


def test_each_logger_has_one_thread_and_a_synchronous_one_has_the_main_one(use: Use, tmp_path: Path) -> None:
    one, two, three = Recorder(), Recorder(), Recorder(synchronous=True)
    run_through(use(one=one, two=two, three=three), tmp_path)
    assert three.threads == {threading.main_thread()}
    assert len(one.threads) == len(two.threads) == 1
    assert len(one.threads | two.threads | three.threads) == 3
    assert all(thread.daemon for thread in one.threads | two.threads)


def test_only_built_in_loggers_that_cannot_hang_are_synchronous() -> None:
    loggers = LoggerSet(["console", "csv", "jsonl", "none", "tensorboard", "wandb"])
    assert [logger.name for logger in loggers._synchronous] == ["console", "jsonl", "none"]
    assert [logger.name for logger in loggers._background] == ["csv", "tensorboard", "wandb"]


ERRORS = pytest.mark.parametrize("error", [RuntimeError("no space\nleft"), SystemExit(2)])
BOTH = pytest.mark.parametrize("synchronous", [True, False])


@ERRORS
@BOTH
def test_failure_at_start_is_fatal_and_closes_the_others(
    use: Use, tmp_path: Path, error: BaseException, synchronous: bool
) -> None:
    one, three = Recorder(synchronous=synchronous), Recorder(synchronous=synchronous)
    two = Recorder("start", error=error, synchronous=synchronous)
    loggers = use(one=one, two=two, three=three)
    with pytest.raises(UserError, match=r"logger 'two' cannot start \[(RuntimeError: no space left|SystemExit: 2)\]"):
        loggers.start(CONFIG, tmp_path)
    assert one.calls == ["start", "finish failed"]
    assert two.calls == ["start"]
    if synchronous:
        assert three.calls == []


def test_a_user_error_of_a_logger_is_not_wrapped(use: Use, tmp_path: Path) -> None:
    error = UserError("log in first")
    with pytest.raises(UserError) as caught:
        use(one=Recorder("start", error=error)).start(CONFIG, tmp_path)
    assert caught.value is error


@ERRORS
@BOTH
def test_later_failures_warn_once_and_stop_nothing(
    use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException, synchronous: bool
) -> None:
    bad = Recorder("log", "samples", "finish finished", error=error, synchronous=synchronous)
    good = Recorder(synchronous=synchronous)
    with caplog.at_level(logging.WARNING):
        run_through(use(bad=bad, good=good), tmp_path)
    assert bad.calls == good.calls
    assert len(caplog.messages) == 1
    assert "logger 'bad' failed" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


def test_ctrl_c_in_a_synchronous_logger_stops_the_run(use: Use, tmp_path: Path) -> None:
    loggers = use(one=Recorder("log", error=KeyboardInterrupt(), synchronous=True))
    with pytest.raises(KeyboardInterrupt):
        run_through(loggers, tmp_path)


@pytest.mark.parametrize("hook", ["start", "log", "samples", "finish finished"])
def test_hanging_loggers_cost_one_time_out_and_one_warning_each(
    use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    monkeypatch.setattr("esplug.loggers.logger_set.TIMEOUT", 0.4)
    gates = {hook: threading.Event()}
    one, two, good = Recorder(gates=gates), Recorder(gates=gates), Recorder()
    loggers, began = use(one=one, two=two, good=good), time.monotonic()
    run_through(loggers, tmp_path)
    assert time.monotonic() - began < 0.75
    lost = {"start": 3, "log": 3, "samples": 1, "finish finished": 0}[hook]
    for name in ("one", "two"):
        hangs = f"logger {name!r} hangs in {hook.split()[0]}; the run ends without it, and {lost} of its calls are lost"
        assert [line for line in caplog.messages if f"{name!r} hangs" in line] == [hangs]
    assert good.calls == ["start", "log", "log", "samples", "finish finished"]
    before = list(one.calls)
    gates[hook].set()
    for thread in one.threads:
        thread.join(5)
        assert not thread.is_alive()
    assert one.calls == before  # given up: no further call


def test_calls_wait_for_a_late_start(
    use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esplug.loggers.logger_set.TIMEOUT", 0.2)
    gate = threading.Event()
    late, good = Recorder(gates={"start": gate}), Recorder()
    loggers = use(late=late, good=good)
    loggers.start(CONFIG, tmp_path)
    assert len(caplog.messages) == 1
    assert "logger 'late' is not ready" in caplog.messages[0]
    loggers.log(0, METRICS)
    loggers.samples(1, [])
    assert late.calls == ["start"]
    gate.set()
    monkeypatch.setattr("esplug.loggers.logger_set.TIMEOUT", 5)
    loggers._background[0].started.result(5)
    loggers.finish("finished")
    assert late.calls == good.calls == ["start", "log", "samples", "finish finished"]
    assert len(caplog.messages) == 1


def test_a_start_that_fails_late_warns_once(
    use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esplug.loggers.logger_set.TIMEOUT", 0.2)
    gate = threading.Event()
    late = Recorder("start", gates={"start": gate})
    loggers = use(late=late)
    loggers.start(CONFIG, tmp_path)
    loggers.log(0, METRICS)
    gate.set()
    for thread in late.threads:
        thread.join(5)
    loggers.log(1, METRICS)
    loggers.finish("finished")
    assert late.calls == ["start"]
    assert [line.partition("[")[0] for line in caplog.messages[1:]] == ["logger 'late' cannot start "]


def test_a_full_queue_drops_with_one_warning(use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    slow = Recorder(gates={"log": gate})
    loggers = use(slow=slow)
    loggers.start(CONFIG, tmp_path)
    for step in range(400):
        loggers.log(step, METRICS)
    gate.set()
    loggers.finish("finished")
    assert slow.calls.count("log") in (256, 257)  # one may have been taken before the queue was full
    assert slow.calls[-1] == "finish finished"
    assert [line.partition(" (in")[0] for line in caplog.messages] == ["logger 'slow' is 256 calls behind"]


def test_each_logger_gets_its_own_copy_of_the_metrics(use: Use, tmp_path: Path) -> None:
    class Emptier(Recorder):
        @hookimpl
        def log(self, step: int, metrics: dict[str, float]) -> None:
            metrics.clear()

    metrics = dict(METRICS)
    loggers = use(one=Emptier(), two=Emptier(synchronous=True))
    loggers.start(CONFIG, tmp_path)
    loggers.log(0, metrics)
    loggers.finish("finished")
    assert metrics == METRICS


def test_jsonl_is_strict_json_and_appends(tmp_path: Path) -> None:
    for step in (3, 4):
        loggers = LoggerSet(["jsonl"])
        loggers.start(CONFIG, tmp_path)
        metrics: dict[str, Any] = {
            "a": math.nan,
            "b": math.inf,
            "c": 0.5,
            "d": 7,
            "e": np.float32(0.25),
            "f": np.int64(2),
        }
        loggers.log(step, metrics)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1], parse_constant=pytest.fail)
        assert list(last) == ["step", "time", *metrics]
        assert last["time"] > 1.7e9
        assert [last[name] for name in ("step", *metrics)] == [step, None, None, 0.5, 7, 0.25, 2]
        loggers.finish("interrupted")
    assert len(lines) == 2


def test_jsonl_that_cannot_be_written_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="logger 'jsonl' cannot start"):
        LoggerSet(["jsonl"]).start(CONFIG, tmp_path / "missing")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@settings(deadline=None)  # it waits for the disk
@given(
    k=st.integers(0, 12),
    eval_freq=st.integers(0, 5),
    reached=st.integers(0, 12),
    torn=st.integers(0, 30),
    evaluated=st.booleans(),
)
def test_a_resumed_run_has_each_row_once_and_loses_none(
    tmp_path_factory: pytest.TempPathFactory, k: int, eval_freq: int, reached: int, torn: int, evaluated: bool
) -> None:
    """A run resumed at iteration k writes what an uninterrupted run writes, wherever it was killed."""
    run_dir = tmp_path_factory.mktemp("run")
    config = make_config({"eval_freq": eval_freq, "n_iterations": 12})

    def write(first: int, last: int, process: int) -> None:
        logger = JsonlLogger()
        logger.start(config, run_dir, first)
        for step in range(first, last + 1):
            due = step in (0, 12) or (eval_freq and step % eval_freq == 0)
            if due and (step < last or evaluated):
                logger.log(step, {"eval/average/reward/mean": 0.5, "process": process})
            if step < last:
                logger.log(step, {"train/reward/mean": 0.5, "time/x": 1.0, "process": process})

    path, aside = run_dir / "metrics.jsonl", run_dir / "metrics.replaced.jsonl"
    write(0, max(reached, k), 1)
    if torn and path.read_bytes():  # a kill within the last row
        path.write_bytes(path.read_bytes()[:-torn])
    before = path.read_bytes().splitlines()
    evaluated = True
    write(k, 12, 2)
    due = {step for step in range(13) if step in (0, 12) or (eval_freq and step % eval_freq == 0)}
    written = [(row["step"], any("eval/" in name for name in row)) for row in rows(path)]
    assert len(set(written)) == len(written)
    assert set(written) >= {(step, False) for step in range(k, 12)} | {(step, True) for step in due if step >= k}
    assert set(written) <= {(step, False) for step in range(12)} | {(step, True) for step in due}
    assert all(row["process"] == 2 for row in rows(path) if row["step"] > k)
    kept = path.read_bytes().splitlines() + (aside.read_bytes().splitlines() if aside.exists() else [])
    assert set(before) <= set(kept)


def test_jsonl_keeps_rows_that_are_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 4, "train/a": 1}', '{"step": 5, "eval/a": 1}', '{"step": 9, "mine": 1}', '{"step": 5, "train/a']
    path.write_text("\n".join(lines))
    JsonlLogger().start(CONFIG, tmp_path, 5)
    assert path.read_text() == f"{lines[0]}\n{lines[2]}\n"
    assert (tmp_path / "metrics.replaced.jsonl").read_text() == f"{lines[1]}\n{lines[3]}\n"
    before = path.stat()
    JsonlLogger().start(CONFIG, tmp_path, 5)
    assert path.stat() == before  # nothing to move: not even rewritten
    path.write_text('{"step": 4, "train/a": 1}')  # whole, but for its newline
    logger = JsonlLogger()
    logger.start(CONFIG, tmp_path, 5)
    logger.log(5, {"train/a": 2.0})
    assert [row["step"] for row in rows(path)] == [4, 5]


def test_two_jsonl_loggers_of_one_process_share_nothing(tmp_path: Path) -> None:
    one, two = JsonlLogger(), JsonlLogger()
    for logger, name in ((one, "one"), (two, "two")):
        (tmp_path / name).mkdir()
        logger.start(CONFIG, tmp_path / name, 0)
    one.log(1, {})
    two.log(2, {})
    assert [rows(tmp_path / name / "metrics.jsonl")[0]["step"] for name in ("one", "two")] == [1, 2]


@pytest.mark.parametrize("large", [{"a": 10**90}, {"a" * 90: 1.0}], ids=["value", "name"])
@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_row_that_does_not_fit_on_the_disk_damages_no_other_row(
    tmp_path: Path, name: str, large: Mapping[str, float]
) -> None:
    code = f"""
        import resource
        from pathlib import Path
        from esplug.loggers.{name} import {name.title()}Logger
        logger = {name.title()}Logger()
        logger.start(None, Path(), 0)
        logger.log(0, {{"a": 1.0}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))
        try:
            logger.log(1, {large})
        except OSError:
            print("full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        logger.log(2, {{"a": 1.0}})
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "full\n"
    path = tmp_path / f"metrics.{name}"
    if name == "csv":
        assert path.read_text() == "step,a\n0,1.0\n2,1.0\n"
    else:
        assert [row["step"] for row in rows(path)] == [0, 2]


def test_none_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_through(LoggerSet(["none"]), tmp_path)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def console(capsys: pytest.CaptureFixture[str], step: int, metrics: Mapping[str, float]) -> list[str]:
    LoggerSet(["console"]).log(step, metrics)  # not started: silent
    loggers = LoggerSet(["console"])
    loggers.start(CONFIG, Path())
    loggers.log(step, metrics)
    return capsys.readouterr().out.splitlines()


def test_console_prints_a_line_per_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    assert console(capsys, 12, METRICS) == [
        "iteration 12  reward mean 0.3125 min -1.0000 max 1.0000 std 0.2500  1,114 tokens/s  58.1 s"
    ]
    assert console(capsys, 0, {"train/reward/mean": 1.0}) == ["iteration 0  reward mean 1.0000"]
    assert console(capsys, 0, {"time/setup": 1.0}) == []


def test_console_prints_a_line_per_split(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 120
    easy = {
        "eval/easy/pass@1/mean": 0.5,
        "eval/easy/pass@1/ci95_low": 0.4,
        "eval/easy/pass@1/ci95_high": 0.6,
        "eval/easy/reward/mean": 0.25,
        "eval/easy/labels/correct": 0.5,
    }
    hard, average = {f"eval/[b]/{long}/pass@1/mean": 0.125}, {"eval/average/pass@1/mean": 0.3125}
    easy_line = "evaluation 5  easy  pass@1 0.5000 [0.4000, 0.6000]  reward 0.2500"
    assert console(capsys, 5, easy | hard | average) == [
        easy_line,
        f"evaluation 5  [b]/{long}  pass@1 0.1250",
        "evaluation 5  average  pass@1 0.3125",
    ]
    assert console(capsys, 5, easy | average) == [easy_line]
    assert console(capsys, 5, {"eval/\x1b[2J/reward/mean": 0.5}) == ["evaluation 5  ␛[2J  reward 0.5000"]


def test_console_prints_a_few_escaped_answers(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"split": "easy", "sample": 0, "target": "4", "reward": 0.5, "label": "format"}
    rows = [
        row | {"index": index, "sample": sample, "prompt": f"[b]{index}", "output": f"{sample}\n\x1b[2J{'x' * 900}"}
        for index in range(40)
        for sample in range(2)
    ]
    rows[2] |= {"prompt": [{"role": "user", "content": "hi"}], "label": ""}
    rows.append(row | {"split": "\x1b]0;", "label": "\x1b[8m\x9b", "index": 0, "prompt": "\x1b", "output": ""})
    loggers = LoggerSet(["console"])
    loggers.start(CONFIG, Path())
    loggers.samples(5, rows)
    first, second, third = capsys.readouterr().out.splitlines()
    assert third == r"evaluation 5  ␛]0;  reward 0.5000 ␛[8m\x9b  '\x1b' -> ''"
    assert first.startswith("evaluation 5  easy  reward 0.5000 format  '[b]0' -> '0 \\x1b[2Jxxx")
    assert """easy  reward 0.5000  '[{"role": "user", "content": "hi"}]' -> '0 """ in second
    assert len(first) < 250


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_named_with_its_extra_when_the_logger_is_loaded(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError) as caught:
        LoggerSet([name])
    assert str(caught.value) == f'logger {name!r} needs the package {name}: pip install "esplug[{name}]"'


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

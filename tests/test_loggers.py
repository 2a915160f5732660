"""Built-in loggers, and the set that keeps any logger from stopping a run."""

import json
import logging
import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import esplug.loggers
from esplug import hookimpl
from esplug.errors import PluginError, UserError
from esplug.loggers import LoggerSet
from esplug.plugins import PluginInfo, relay

CONFIG: Any = SimpleNamespace(
    wandb_project="tests", experiment_name="one", model_dump=lambda: {"sigma": 0.001, "folder": Path("x")}
)
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
    """A logger that remembers its calls, and fails in those named."""

    def __init__(self, *failing: str, error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self._failing = failing
        self._error = error or RuntimeError("no space\nleft")

    def _record(self, hook: str) -> None:
        self.calls.append(hook)
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

        monkeypatch.setattr(esplug.loggers, "load", load)
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


def test_a_name_given_twice_counts_once(tmp_path: Path) -> None:
    loggers = LoggerSet(["jsonl", "none", "jsonl"])
    loggers.start(CONFIG, tmp_path)
    loggers.log(0, {"a": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_unknown_logger() -> None:
    with pytest.raises(PluginError, match="did you mean 'jsonl'"):
        LoggerSet(["console", "json"])


@pytest.mark.parametrize("error", [RuntimeError("no space\nleft"), SystemExit(2)])
def test_failure_at_start_is_fatal_and_closes_the_others(use: Use, tmp_path: Path, error: BaseException) -> None:
    one, two, three = Recorder(), Recorder("start", error=error), Recorder()
    loggers = use(one=one, two=two, three=three)
    with pytest.raises(UserError, match=r"logger 'two' cannot start \[(RuntimeError: no space left|SystemExit: 2)\]"):
        loggers.start(CONFIG, tmp_path)
    assert one.calls == ["start", "finish failed"]
    assert two.calls == ["start"]
    assert three.calls == []


def test_a_loggers_own_user_error_passes_as_it_is(use: Use, tmp_path: Path) -> None:
    error = UserError("log in first")
    with pytest.raises(UserError) as caught:
        use(one=Recorder("start", error=error)).start(CONFIG, tmp_path)
    assert caught.value is error


@pytest.mark.parametrize("error", [RuntimeError("no space\nleft"), SystemExit(2)])
def test_later_failures_warn_once_and_stop_nothing(
    use: Use, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    bad, good = Recorder("log", "samples", "finish finished", error=error), Recorder()
    with caplog.at_level(logging.WARNING):
        run_through(use(bad=bad, good=good), tmp_path)
    assert bad.calls == good.calls
    assert len(caplog.messages) == 1
    assert "logger 'bad' failed" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


def test_ctrl_c_in_a_logger_stops_the_run(use: Use, tmp_path: Path) -> None:
    loggers = use(one=Recorder("log", error=KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_through(loggers, tmp_path)


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


def test_console_prints_a_line_an_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    assert console(capsys, 12, METRICS) == [
        "iteration 12  reward mean 0.3125 min -1.0000 max 1.0000 std 0.2500  1,114 tokens/s  58.1 s"
    ]
    assert console(capsys, 0, {"train/reward/mean": 1.0}) == ["iteration 0  reward mean 1.0000"]
    assert console(capsys, 0, {"time/setup": 1.0}) == []


def test_console_prints_a_line_a_split(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_wandb_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(PluginError, match=r"pip install 'esplug\[wandb\]'"):
        LoggerSet(["wandb"]).start(CONFIG, tmp_path)


def wandb_process(code: str, tmp_path: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    pytest.importorskip("wandb")
    setup = """
        from pathlib import Path
        from types import SimpleNamespace
        from esplug.loggers import LoggerSet
        config = SimpleNamespace(
            wandb_project="tests",
            experiment_name=None,
            model_dump=lambda: {"sigma": 0.001, "folder": Path("x")},
        )
        loggers = LoggerSet(["wandb"])
        run_dir = Path("run-7")
        run_dir.mkdir()
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


def test_wandb_offline(tmp_path: Path) -> None:
    code = """
        loggers.start(config, run_dir)
        import wandb
        assert (wandb.run.project, wandb.run.name) == ("tests", "run-7")
        assert wandb.run.config["sigma"] == 0.001
        loggers.log(0, {"train/reward/mean": 0.5})
        row = {"split": "easy", "prompt": [{"role": "user"}], "target": {1, 2}, "output": "x", "reward": 1.0,
               "label": "", "tokens": 3}
        loggers.samples(0, [row, row | {"prompt": "text", "target": "2"}])
        loggers.finish("finished")
        assert wandb.run is None
    """
    run = wandb_process(code, tmp_path, WANDB_MODE="offline")
    assert re.search("train/reward/mean +0.5", run.stderr)
    assert "failed [" not in run.stderr
    assert list((tmp_path / "run-7" / "wandb").glob("offline-run-*/files/media/table/samples*.json"))
    assert list((tmp_path / "run-7" / "wandb").glob("offline-run-*/*.wandb"))


def test_wandb_without_login_or_terminal_fails_at_once(tmp_path: Path) -> None:
    code = """
        from esplug.errors import PluginError
        try:
            loggers.start(config, run_dir)
        except PluginError as error:
            print(error)
    """
    run = wandb_process(code, tmp_path)
    last = run.stdout.splitlines()[-1]
    assert "run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline" in last

"""Logger set: one failing or hanging logger stops neither the run nor other loggers."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from esplug import hookimpl
from esplug.config import make_config
from esplug.errors import PluginError, UserError
from esplug.loggers.logger_set import LoggerSet
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay
from tests.helpers.timing import within

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
    loggers = use(one=one, two=two, good=good)
    with within(0.75):
        run_through(loggers, tmp_path)
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


def test_none_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_through(LoggerSet(["none"]), tmp_path)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_named_with_its_extra_when_the_logger_is_loaded(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError) as caught:
        LoggerSet([name])
    assert str(caught.value) == f'logger {name!r} needs the package {name}: pip install "esplug[{name}]"'

"""Callbacks: what they get, how they stop a run, and what a bad one costs."""

import dataclasses
import time
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from esplug import hookimpl
from esplug.config import make_config
from esplug.errors import UserError
from esplug.events import EvaluationEnd, IterationEnd, RunEnd
from esplug.loggers.callbacks import callback_hooks
from esplug.loggers.logger_set import LoggerSet
from esplug.plugins import PluginInfo
from esplug.plugins.loading import relay
from tests.helpers.timing import within

CONFIG = make_config({"task": "custom", "n_iterations": 6})
BOTH = pytest.mark.parametrize("synchronous", [True, False])


def iteration(number: int) -> IterationEnd:
    return IterationEnd(number, np.zeros((2, 1)), np.zeros(2), (0.5, -0.5), 7, {"train/reward/mean": number / 10})


def evaluation(updates: int, mean: float) -> EvaluationEnd:
    return EvaluationEnd(updates, {"eval/average/reward/mean": mean}, (), ())


class Watch:
    """A callback that notes what it gets, and answers by a function."""

    def __init__(self, answer: Any = lambda event: None, *, synchronous: bool = False) -> None:
        self.answer, self.synchronous = answer, synchronous
        self.seen: list[Any] = []
        self.in_main_thread: set[bool] = set()

    def on_iteration_end(self, event: IterationEnd) -> Any:
        self.in_main_thread.add(current_thread() is main_thread())
        self.seen.append(event.iteration)
        return self.answer(event)

    def on_evaluation_end(self, event: EvaluationEnd) -> Any:
        self.seen.append(("evaluation", event.updates))
        return self.answer(event)

    def on_run_end(self, event: RunEnd) -> None:
        self.seen.append((event.status, event.reason, event.updates))


def run(folder: Path, *callbacks: object, names: tuple[str, ...] = ()) -> tuple[int, str]:
    """Call the set as a run of six iterations does. Return how many it makes, and why it stops."""
    loggers = LoggerSet(names, callbacks=callback_hooks(callbacks))
    loggers.start(CONFIG, folder)
    done, reason = 0, loggers.evaluation_end(lambda: evaluation(0, 0.1))
    while done < 6 and not reason:
        loggers.log(done, {"train/reward/mean": done / 10})
        reason = loggers.iteration_end(lambda number=done: iteration(number))
        done += 1
    loggers.run_end(RunEnd("stopped" if reason else "finished", reason, done, 7, folder))
    loggers.finish("finished")
    return done, reason


def at(number: int, reason: Any = "enough", seconds: float = 0.0) -> Any:
    def answer(event: Any) -> Any:
        time.sleep(seconds)
        return reason if getattr(event, "iteration", None) == number else None

    return answer


@BOTH
def test_a_callback_sees_every_event_and_stops_nothing_by_looking(synchronous, tmp_path) -> None:
    watch = Watch(synchronous=synchronous)
    assert run(tmp_path, watch) == (6, "")
    assert watch.seen == [("evaluation", 0), *range(6), ("finished", "", 6)]
    assert watch.in_main_thread == {synchronous}


@BOTH
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_a_stop_takes_effect_at_the_event_that_asked_for_it_however_slow_threads_are(
    synchronous, seconds, tmp_path
) -> None:
    slow = [Watch(at(2, "enough", seconds), synchronous=synchronous), Watch(at(2, "later one")), Watch(at(3))]
    assert run(tmp_path, *slow) == (3, "enough")
    for watch in slow:
        assert watch.seen == [("evaluation", 0), 0, 1, 2, ("stopped", "enough", 3)]


def test_an_evaluation_can_stop_a_run_before_its_first_update(tmp_path) -> None:
    watch = Watch(lambda event: f"{event.metrics['eval/average/reward/mean']:.1f} is good\nenough")
    assert run(tmp_path, watch) == (0, "0.1 is good enough")


def fail(event: object) -> None:
    raise RuntimeError("no\nspace")


def leave(event: object) -> None:
    raise SystemExit(3)


@BOTH
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fail, "failed [RuntimeError: no space]"),
        (leave, "failed [SystemExit: 3]"),
        (lambda event: True, "failed [TypeError: on_evaluation_end returned bool, not None or a text that says why"),
        (lambda event: 1.0, "on_evaluation_end returned float, not None"),
        (lambda event: " ", "on_evaluation_end returned an empty text, not None"),
        (lambda event: np.zeros(3), "on_evaluation_end returned ndarray, not None"),
    ],
)
def test_a_callback_that_fails_or_answers_nonsense_costs_one_warning(
    synchronous, answer, words, tmp_path, caplog
) -> None:
    bad, good = Watch(answer, synchronous=synchronous), Watch(at(4))
    assert run(tmp_path, bad, good) == (5, "enough")
    assert bad.seen == good.seen
    (message,) = caplog.messages
    assert message.startswith("callback 'Watch' failed [")
    assert words in message


def test_a_callback_that_hangs_costs_the_time_limit_and_is_switched_off(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("esplug.loggers.logger_set.ANSWER", 0.3)
    gate = Event()
    bad, good = Watch(lambda event: gate.wait(60) and None), Watch(at(4))
    with within(2):
        assert run(tmp_path, bad, good) == (5, "enough")
    gate.set()
    assert caplog.messages == [
        "callback 'Watch' hangs in on_evaluation_end; it is switched off, and 1 of its calls are lost"
    ]
    assert bad.seen == [("evaluation", 0)]


def test_a_start_that_is_slow_does_not_lose_an_answer(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("esplug.loggers.logger_set.TIMEOUT", 0.4)

    class Slow(Watch):
        def start(self) -> None:
            time.sleep(0.8)

    assert run(tmp_path, Slow(at(0))) == (1, "enough")
    assert len(caplog.messages) == 1
    assert "is not ready" in caplog.messages[0]


def test_a_start_that_fails_late_neither_stops_nor_delays(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("esplug.loggers.logger_set.TIMEOUT", 0.4)

    class Late(Watch):
        def start(self) -> None:
            time.sleep(0.8)
            raise RuntimeError("no server")

    with within(3):
        assert run(tmp_path, Late(at(0)), Watch()) == (6, "")
    assert "cannot start [RuntimeError: no server]" in caplog.messages[1]


def test_a_start_that_fails_at_once_names_the_callback(tmp_path) -> None:
    class Failing(Watch):
        def start(self, config: Any) -> None:
            raise RuntimeError(config.task)

    with pytest.raises(UserError, match=r"callback 'Failing' cannot start \[RuntimeError: custom\]; .* of callbacks"):
        run(tmp_path, Failing())


def test_a_logger_plugin_can_stop_a_run_in_the_same_way(tmp_path, monkeypatch) -> None:
    class Plugin:
        @hookimpl
        def log(self) -> None:
            """Ignore the metrics."""

        @hookimpl
        def on_iteration_end(self, event: IterationEnd) -> str | None:
            return "asked by a plugin" if event.iteration == 1 else None

    hooks = relay(Plugin(), PluginInfo("logger", "p", "tests", "1", "tests"))
    monkeypatch.setattr("esplug.loggers.logger_set.load", lambda kind, name: hooks)
    assert run(tmp_path, Watch(at(1, "asked by a callback")), names=("p",)) == (2, "asked by a plugin")


def test_records_cannot_be_changed() -> None:
    for event in (iteration(0), evaluation(0, 0.0), RunEnd("finished", "", 0, 0, Path())):
        for name in (field.name for field in dataclasses.fields(event)):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(event, name, None)


def test_a_callback_may_have_all_hooks_of_a_logger_and_needs_no_decorator(tmp_path) -> None:
    class All(Watch):
        def start(self, run_dir: Path) -> None:
            self.seen.append(run_dir)

        def log(self, step: int) -> None:
            self.seen.append(f"log {step}")

        def finish(self, status: str) -> None:
            self.seen.append(status)

        @property
        def samples(self) -> None:
            raise RuntimeError("no hook, and nobody's business")

    callback = All(at(0))
    run(tmp_path, callback)
    assert callback.seen == [tmp_path, ("evaluation", 0), "log 0", 0, ("stopped", "enough", 1), "finished"]


def test_functions_in_a_namespace_are_a_callback(tmp_path) -> None:
    assert run(tmp_path, SimpleNamespace(on_iteration_end=at(3))) == (4, "enough")


def test_callbacks_of_one_class_are_numbered() -> None:
    assert list(callback_hooks([Watch(), Watch(), Watch()])) == ["Watch", "Watch 2", "Watch 3"]


class Misspelt:
    def on_iteration_ends(self, event: object) -> None: ...


class Unknown:
    def on_evaluation_end(self, event: object, trainer: object) -> None: ...


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([Misspelt()], "callback 'Misspelt' defines on_iteration_ends, which is no hook; did you mean 'on_iteration_e"),
        ([Unknown()], "callback 'Unknown': hook on_evaluation_end takes the unknown argument 'trainer'; it may take"),
        ([Watch], "callbacks has the class Watch; give an object: Watch()"),
        ([print], "callback 'builtin_function_or_method' has no hook; give an object with a method such as"),
        (["wandb"], "callback 'str' has no hook"),
        ("wandb", "callbacks is a str; give a list of objects"),
        (Watch(), "callbacks is a Watch; give a list of objects"),
    ],
)  # fmt: skip
def test_what_is_no_callback_is_refused_in_one_line(callbacks, words) -> None:
    with pytest.raises(UserError) as refused:
        callback_hooks(callbacks)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)

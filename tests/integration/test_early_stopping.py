"""Early stopping and callbacks in whole runs: on a toy engine, and at the command line on real Ray and vLLM."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esplug.checkpoints.history import History
from esplug.cli import app as cli
from esplug.engines.messages import EngineSettings
from esplug.errors import RunError, UserError
from esplug.events import EvaluationEnd, IterationEnd, RunEnd
from esplug.planning.placement import Plan
from esplug.report.run_data import read_run
from esplug.runs.result import RunResult
from esplug.runs.summary import summarise
from esplug.trainer import EvolutionStrategiesTrainer
from tests.helpers.toy import use_toys
from tests.helpers.training import KeptEngines

QUESTIONS, TARGETS = ["one", "two", "three"], [1, 2, 3]
#: Held-out rewards by number of updates, which the model's own answers would not follow.
SCORES = [0.25, 0.5, 0.375, 0.5, 0.25, 0.75, 0.5]


class Scripted(EvolutionStrategiesTrainer):
    """A trainer whose evaluations have the rewards of ``SCORES``."""

    _score: float | None = None

    def eval_step(self, iteration: int) -> Any:
        self._score = SCORES[iteration]
        try:
            return super().eval_step(iteration)
        finally:
            self._score = None

    def _postprocess_outputs(self, outputs: list[str], targets: Any) -> Any:
        return super()._postprocess_outputs([f"={self._score}"] * len(outputs) if self._score else outputs, targets)


def reward(output: str, target: int) -> float:
    return float(output[1:]) if output.startswith("=") else sum(map(ord, output)) % 97 / 97 + target


@pytest.fixture
def start(tiny_model, tmp_path, monkeypatch):
    use_toys(monkeypatch)

    def start(**settings: Any) -> Scripted:
        usual = {
            **{"model_name": str(tiny_model), "sigma": 0.02, "alpha": 0.05, "population_size": 2, "max_tokens": 4},
            **{"num_iterations": 6, "eval_freq": 1, "n_vllm_engines": 1, "use_gpus": "none", "max_model_len": 128},
            **{"reward_function": reward, "train_dataloader": [(QUESTIONS, TARGETS)]},
            **{"template_function": str, "eval_dataloader_dict": {"held_out": [(QUESTIONS, TARGETS)]}},
            **{"logging": "none", "output_directory": str(tmp_path / "runs"), "experiment_name": "run"},
        }
        return Scripted(**usual | settings)

    return start


def updates_of(result: RunResult) -> list[int]:
    return [evaluation.iteration for evaluation in result.evaluations]


def test_a_run_stops_early_and_goes_on_as_if_it_had_not(start, tmp_path, capsys) -> None:
    whole = start(experiment_name="whole").fit(summary=False)
    assert (whole.stopped, updates_of(whole)) == (None, list(range(7)))

    rule = {"early_stopping_patience": 2, "save_best_models": True, "early_stopping_min_delta": 0.1}
    first = start(**rule).fit()
    reason = (
        "eval/average/reward/mean did not improve by at least 0.1 in 2 evaluations; its best was 0.5 after 1 updates"
    )
    assert updates_of(first) == [0, 1, 2, 3]
    assert first.stopped is not None
    assert (first.stopped.reason, first.stopped.by_settings) == (reason, True)
    assert capsys.readouterr().out.splitlines()[-1] == f"stopped early: {reason}"
    assert first.model == first.run_dir / "checkpoints" / "checkpoint-es_fine_tuned_iteration_3"
    summary, data = summarise(first.run_dir), read_run(first.run_dir)
    assert (summary.state, summary.reason, summary.iterations, summary.planned) == ("stopped", reason, 3, 6)
    assert data.model == "checkpoints/checkpoint-es_fine_tuned_iteration_3"
    assert f'"stopped": "{reason}"' in (first.run_dir / "results.json").read_text()
    assert [folder.name for folder in (first.run_dir / "checkpoints").glob("*mean*")] == ["run-mean0.5000"]

    with pytest.raises(UserError, match=r"it stopped early, as .*; to continue it, give a larger"):
        start(**rule).fit(first.run_dir)
    last = start(**rule | {"early_stopping_patience": 4}).fit(first.run_dir, summary=False)
    assert (last.stopped, updates_of(last), last.checksum) == (None, list(range(7)), whole.checksum)
    assert summarise(first.run_dir).state == "finished"


def test_an_interrupted_run_stops_where_it_would_have_stopped(start) -> None:
    class Failing(Scripted):
        def train_step(self, iteration: int) -> None:
            if iteration == 2:
                raise RunError("the power fails")
            super().train_step(iteration)

    rule = {"early_stopping_patience": 3}
    trainer = start(**rule)
    trainer.__class__ = Failing
    with pytest.raises(RunError, match="the power fails"):
        trainer.fit()
    resumed = start(**rule).fit(trainer.run_dir.path, summary=False)
    undisturbed = start(experiment_name="undisturbed", **rule).fit(summary=False)
    assert updates_of(resumed) == updates_of(undisturbed) == [0, 1, 2, 3, 4]
    assert resumed.stopped == undisturbed.stopped
    assert resumed.stopped is not None
    assert resumed.checksum == undisturbed.checksum


class Callback:
    """Stops after an iteration, and keeps all records."""

    def __init__(self, last: int | None) -> None:
        self.last, self.events = last, list[Any]()

    def on_iteration_end(self, event: IterationEnd) -> str | None:
        self.events.append(event)
        return "that is enough" if event.iteration == self.last else None

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        self.events.append(event)

    def on_run_end(self, event: RunEnd) -> None:
        self.events.append(event)


def test_a_callback_sees_the_run_and_stops_it_at_the_iteration_it_names(start) -> None:
    callback = Callback(last=2)
    trainer = start(callbacks=[callback], eval_freq=2)
    result = trainer.fit(summary=False)
    assert (result.stopped.reason, result.stopped.by_settings) == ("that is enough", False)
    assert updates_of(result) == [0, 2, 3]  # the last one because the run stopped there
    kinds = [type(event).__name__ for event in callback.events]
    evaluated, trained = "EvaluationEnd", "IterationEnd"
    assert kinds == [evaluated, trained, trained, evaluated, trained, evaluated, "RunEnd"]
    *_, third, last, end = callback.events
    assert (third.iteration, third.rewards.shape, len(third.coefficients)) == (2, (2, 3), 2)
    assert third.checksum == result.checksum == end.checksum
    assert third.metrics["train/reward/mean"] == pytest.approx(third.rewards.mean())
    with pytest.raises(ValueError, match="read-only"):
        third.rewards[0] = 0
    with pytest.raises(TypeError):
        third.metrics["x"] = 0
    assert last.metrics["eval/average/reward/mean"] == SCORES[3]
    assert [(n, row["eval/average/reward/mean"]) for n, row in last.earlier] == [(0, SCORES[0]), (2, SCORES[2])]
    assert [row["prompt"] for row in last.samples] == QUESTIONS
    assert (end.status, end.reason, end.updates, end.run_dir) == ("stopped", "that is enough", 3, result.run_dir)
    assert summarise(result.run_dir).state == "stopped"

    again = Callback(last=5)  # too late to stop anything: the run is done
    resumed = start(callbacks=[again], eval_freq=2).fit(result.run_dir, summary=False)
    assert (resumed.stopped, again.events[-1].status) == (None, "finished")
    assert [event.iteration for event in again.events if isinstance(event, IterationEnd)] == [3, 4, 5]
    assert [n for n, _ in again.events[-2].earlier] == [0, 2, 3, 4]
    assert resumed.checksum == start(experiment_name="whole").fit(summary=False).checksum


@pytest.fixture(scope="module")
def engines(tiny_model, tmp_path_factory) -> Iterator[KeptEngines]:
    import ray

    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    settings = EngineSettings(str(tiny_model), "float32", "float32", "auto", "cpu", 1, 1024, memory_share=0.02)
    kept = KeptEngines(Plan(1, "cpu", 0, 1), settings, 0, 2**26, tmp_path_factory.mktemp("engine"))
    try:
        kept.start(History(0))
        yield kept
    finally:
        kept.stop()
        ray.shutdown()


@pytest.mark.vllm
def test_the_command_line_stops_early_and_says_so(engines, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(EvolutionStrategiesTrainer, "launch_engines", lambda trainer: engines)
    command = f"train --task countdown --task-option level=easy --task-option shots=0 --model-name {tiny_model} "
    command += "--n-iterations 9 --eval-freq 1 --population-size 2 --batch-size 2 --max-tokens 4 --max-model-len 1024 "
    command += "--eval-limit 2 --use-gpus none --n-vllm-engines 1 --early-stopping-patience 1 "
    command += f"--output-directory {tmp_path} --experiment-name run"

    def esplug(arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["esplug", *arguments.split()])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capfd.readouterr()
        return done.value.code, out + err

    code, text = esplug(command)
    assert code == 0, text
    assert "stopped early: eval/average/reward/mean did not improve in 1 evaluation; its best was 0 after 0" in text
    code, text = esplug(f"train --resume {tmp_path / 'run'}")
    assert code == 2
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert line.endswith("to continue it, give a larger --early-stopping-patience, or --early-stopping-patience 0")
    code, text = esplug(f"train --resume {tmp_path / 'run'} --early-stopping-patience 0 --n-iterations 2")
    assert code == 0, text
    assert summarise(Path(tmp_path, "run")).iterations == 2
    code, text = esplug(f"runs {tmp_path}")
    assert "finished" in text

"""The trainer from Python, in whole runs on a toy engine; ``test_python_runs.py`` has runs on real Ray and vLLM."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esplug.config import RunConfig, make_config
from esplug.errors import RunError, UserError
from esplug.runs.summary import summarise
from esplug.trainer import EvolutionStrategiesTrainer
from tests.helpers.run_files import read_evaluation, read_iteration, record_of, tensors_of
from tests.helpers.toy import use_toys
from tests.helpers.training import QUESTIONS, TARGETS, tiny_run


@pytest.fixture
def start(tiny_model, tmp_path, monkeypatch):
    """Return a function that makes a trainer for a tiny run, with grading processes if the reward can fail."""

    def start(
        kind: type[EvolutionStrategiesTrainer] = EvolutionStrategiesTrainer, *, graders: bool = False, **settings: Any
    ) -> EvolutionStrategiesTrainer:
        use_toys(monkeypatch, graders=graders)
        return kind(**tiny_run(tiny_model, tmp_path / "runs") | settings)

    return start


def test_a_seed_decides_the_result(start) -> None:
    again = [start(global_seed=seed).fit() for seed in (3, 3, 4)]
    assert again[0].checksum == again[1].checksum != again[2].checksum
    assert record_of(again[0]) == record_of(again[1])
    assert [result.run_dir.name.partition("-seed")[2] for result in again] == ["3", "3-2", "4"]


def test_normalized_utilities_make_steps_of_the_same_size_with_every_shaping(start) -> None:
    settings = {"num_iterations": 1, "alpha": 0.002, "reward_function": lambda output, _: sum(map(ord, output)) % 97}
    norms, directions = {}, {}
    for shaping in ("z-scores", "mean-centered", "centered-ranks", "z-scores-per-prompt"):
        trainer = start(reward_shaping=shaping, normalize_utilities=True, **settings)
        trainer.fit()
        coefficients = np.array(trainer.history.steps[0].coefficients)
        norms[shaping], directions[shaping] = float(np.linalg.norm(coefficients)), coefficients.tolist()
    members = len(coefficients)
    assert norms == pytest.approx(dict.fromkeys(norms, 0.002 / np.sqrt(members)), rel=1e-6)
    assert directions["mean-centered"] == pytest.approx(directions["z-scores"], rel=1e-6)
    assert directions["z-scores-per-prompt"] != pytest.approx(directions["z-scores"], rel=1e-3)


def test_a_torch_dataloader_is_started_over_when_it_ends(start) -> None:
    from torch.utils.data import DataLoader

    class Recording(EvolutionStrategiesTrainer):
        batches: list[Any]

        def evaluate_population_on_batch(self, members, questions, targets):
            self.batches.append((list(questions), [int(target) for target in targets]))
            return super().evaluate_population_on_batch(members, questions, targets)

    batches = [(QUESTIONS[:5], TARGETS[:5]), (QUESTIONS[5:], TARGETS[5:])]
    loader = DataLoader(list(zip(QUESTIONS, TARGETS, strict=True)), batch_size=5)
    results = []
    for data in (loader, batches):  # its targets are tensors, which would make the reward a float32
        settings = {"reward_function": lambda output, target: sum(map(ord, output)) % 97 + int(target)}
        trainer = start(Recording, train_dataloader=data, num_iterations=3, antithetic=True, **settings)
        trainer.batches = []
        results.append(trainer.fit())
        assert trainer.batches == [*batches, batches[0]]
    assert results[0].checksum == results[1].checksum
    assert record_of(results[0]) == record_of(results[1])
    with pytest.raises(UserError, match="train_dataloader can be iterated only once"):
        start(train_dataloader=iter(batches))


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (lambda output, target: 1 / 0, "cannot grade any of the answers that were tried.*ZeroDivisionError"),
        (lambda output: 1.0, r"takes 1 positional argument but 2 were given.*must take \(model_output, target\)"),
        (7, r"reward_function is not callable \(int\)"),
    ],
)
def test_a_reward_that_can_grade_nothing_is_refused_before_engines_start(reward, reason, start) -> None:
    with pytest.raises(UserError, match=reason):
        start(reward_function=reward, experiment_name="refused", graders=True).fit()
    assert start(experiment_name="refused").fit().evaluations == []  # the name is free


def test_a_reward_that_raises_on_all_answers_of_a_model_is_a_run_error(start, capsys) -> None:
    trainer = start(reward_function=lambda output, target: 1 / (not output), graders=True)
    with pytest.raises(RunError, match=r"every reward failed \(error:ZeroDivisionError x32\)"):
        trainer.fit()
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().out
    assert (trainer.run_dir.path / "config.toml").exists()


def test_without_iterations_a_model_is_only_evaluated(start) -> None:
    data = {"train_dataloader": None, "eval_dataloader_dict": {"held-out": [(QUESTIONS, TARGETS)]}}
    result = start(num_iterations=0, save_best_models=True, **data).fit()
    (evaluation,) = result.evaluations
    assert (evaluation.iteration, result.model) == (0, None)
    samples = read_evaluation(result.run_dir, "held-out", 0)["samples"]
    assert [sample["prompt"] for sample in samples] == [f"Q: {question} A:" for question in QUESTIONS]
    assert [sample["reward"] for sample in samples] == evaluation.splits[0].rewards
    for folder in ("checkpoints", "train-output"):
        assert not (result.run_dir / folder).exists()


class Scripted(EvolutionStrategiesTrainer):
    """Replaces what the model says in evaluations by scores from a list, and notes which methods run."""

    scores = (0.25, 0.5, 0.375, 0.75)

    def fit(self):
        self.calls, self._score = [], None
        return super().fit()

    def launch_engines(self):
        self.calls.append("launch_engines")
        return super().launch_engines()

    def eval_step(self, iteration):
        self.calls.append("eval_step")
        self._score = self.scores[iteration]
        try:
            return super().eval_step(iteration)
        finally:
            self._score = None

    def evaluate_population_on_batch(self, members, questions, targets):
        self.calls.append("evaluate_population_on_batch")
        return super().evaluate_population_on_batch(members, questions, targets)

    def _postprocess_outputs(self, outputs, targets):
        self.calls.append("_postprocess_outputs")
        said = [f"score={self._score}" if self._score else output for output in outputs]
        return super()._postprocess_outputs(said, targets)


def test_methods_can_be_overridden_and_better_models_are_saved(start) -> None:
    def reward(output: str, target: int) -> float:
        scripted = output.removeprefix("score=")
        return float(scripted) if scripted != output else sum(map(ord, output)) % 97

    data = {"eval_dataloader_dict": {"all": [(QUESTIONS, TARGETS)]}, "experiment_name": "best"}
    settings = {"num_iterations": 3, "eval_freq": 1, "save_best_models": True, "reward_function": reward}
    trainer = start(Scripted, **data | settings)
    result = trainer.fit()
    evaluating = ["eval_step", "_postprocess_outputs"]
    training = ["evaluate_population_on_batch", *["_postprocess_outputs"] * 4]
    assert trainer.calls == ["launch_engines", *(evaluating + training) * 3, *evaluating]
    assert [evaluation.mean for evaluation in result.evaluations] == [0.25, 0.5, 0.375, 0.75]

    checkpoints = result.run_dir / "checkpoints"
    final = "checkpoint-es_fine_tuned_iteration_3"
    assert {folder.name for folder in checkpoints.iterdir()} == {"best-mean0.5000", "best-mean0.7500", final}
    assert result.model == checkpoints / final
    early, late, last = (tensors_of(checkpoints / name) for name in ("best-mean0.5000", "best-mean0.7500", final))
    assert early.keys() == late.keys() == last.keys()
    assert all(np.array_equal(late[name], last[name]) for name in last)
    assert not any(np.array_equal(early[name], last[name]) for name in last)
    assert (checkpoints / "best-mean0.5000" / "config.json").exists()


def test_equal_rewards_make_no_update(start, capsys) -> None:
    result = start(reward_function=lambda output, target: 1.5).fit()
    base, model = (tensors_of(Path(folder)) for folder in (start().config.model_name, result.model))
    assert all(np.array_equal(base[name], model[name]) for name in base)
    assert read_iteration(result.run_dir, 0)["checksum"] == f"{result.checksum:016x}"
    out = capsys.readouterr().out
    assert "every utility is zero" in out
    assert result.unchanged.startswith("all members earned the same in every iteration; try ")
    assert out.splitlines()[-1] == f"nothing was learnt: weights unchanged, as {result.unchanged}"
    assert summarise(result.run_dir).unchanged == result.unchanged


@pytest.mark.parametrize(
    ("logging", "summary", "lines"),
    [("console", True, 4), ("none", True, 1), (None, True, 1), ("jsonl", True, 1), ("none", False, 0)],
)
def test_a_run_in_python_ends_with_its_results_or_at_least_their_place(logging, summary, lines, start, capsys) -> None:
    result = start(logging=logging).fit(summary=summary)
    out = capsys.readouterr().out.splitlines()
    end = out[-lines:] if lines else []
    assert [line.split()[0] for line in end] == ["run", "model", "time", "details"][:lines]
    assert any(str(result.run_dir) in line for line in end) == bool(lines)
    assert bool(result.unchanged) is False


def test_an_explicit_name_is_not_used_twice(start) -> None:
    first = start(experiment_name="mine").fit()
    before = {path: path.stat().st_mtime_ns for path in first.run_dir.rglob("*")}
    with pytest.raises(UserError, match=r"--experiment-name mine: .*exists; choose another name, or resume that run"):
        start(experiment_name="mine").fit()
    assert {path: path.stat().st_mtime_ns for path in first.run_dir.rglob("*")} == before


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((["x" * 300], [0]), "has 306 tokens; at most 248 fit"),
        ((["one", "two"], [0]), "2 prompts and 1 targets"),
    ],
    ids=["too long a prompt", "a missing target"],
)
def test_a_bad_batch_later_on_ends_the_run_and_keeps_its_directory(start, second, message) -> None:
    trainer = start(train_dataloader=[(QUESTIONS, TARGETS), second], num_iterations=2)
    with pytest.raises(UserError, match=message):
        trainer.fit()
    assert read_iteration(trainer.run_dir.path, 0)["members"]


def test_a_model_is_saved_even_where_its_last_evaluation_fails(start) -> None:
    class Failing(EvolutionStrategiesTrainer):
        def eval_step(self, iteration):
            if iteration:
                raise RunError("the last evaluation fails")

    trainer = start(Failing)
    with pytest.raises(RunError, match="the last evaluation fails"):
        trainer.fit()
    saved = trainer.run_dir.path / "checkpoints" / "checkpoint-es_fine_tuned_iteration_1"
    assert tensors_of(saved).keys() == tensors_of(Path(trainer.config.model_name)).keys()


def test_settings_of_a_run_in_python_are_those_of_its_config_file(start) -> None:
    trainer = start(stop=["zz"], eval_freq=0, logging="jsonl,none")
    config = make_config(tomllib.loads((trainer.fit().run_dir / "config.toml").read_text()))
    assert isinstance(config, RunConfig)
    assert config == trainer.config

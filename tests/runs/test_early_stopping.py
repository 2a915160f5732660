"""Early stopping of a run: decided by its recorded evaluations, and refused where it cannot work."""

import re

import pytest

from esplug.config import make_config
from esplug.data.splits import EvaluationSplit
from esplug.errors import UserError
from esplug.evaluation.figures import Evaluation
from esplug.runs.directory import RunDirectory
from esplug.runs.early_stopping import check_metric, described, early_stop
from esplug.runs.resume import past_evaluations
from tests.helpers.runs import evaluation, sample

REWARD = "eval/average/reward/mean"


def config_of(**settings):
    return make_config({"task": "custom", "n_iterations": 40, "eval_freq": 5, "early_stopping_patience": 2}, settings)


def evaluated(iteration: int, reward: float, split: str = "held_out", **details) -> Evaluation:
    return evaluation(iteration, [sample(index, reward, split, **details) for index in range(3)])


def scored(*rewards: float, every: int = 5) -> list[Evaluation]:
    return [evaluated(every * number, reward) for number, reward in enumerate(rewards)]


@pytest.mark.parametrize(
    ("rewards", "settings", "reason"),
    [
        ((0.1, 0.2, 0.3), {}, None),
        ((0.1, 0.2, 0.2), {}, None),
        ((0.1, 0.2, 0.2, 0.1), {}, f"{REWARD} did not improve in 2 evaluations; its best was 0.2 after 5 updates"),
        ((0.1, 0.2, 0.2, 0.1), {"early_stopping_patience": 3}, None),
        ((0.1, 0.2, 0.2, 0.1), {"early_stopping_patience": 0}, None),
        ((0.1, 0.05), {"early_stopping_patience": 1}, f"{REWARD} did not improve in 1 evaluation; its best was 0.1"),
        ((0.1, 0.12, 0.14), {"early_stopping_min_delta": 0.1}, "did not improve by at least 0.1 in 2 evaluations; its"),
    ],
)
def test_a_run_stops_after_evaluations_without_improvement(rewards, settings, reason) -> None:
    stop = early_stop(config_of(**settings), scored(*rewards))
    assert (stop is not None) == (reason is not None)
    if stop is not None:
        assert reason in stop.reason
        assert stop.by_settings


def test_a_resumed_run_decides_as_an_uninterrupted_one(tmp_path) -> None:
    rewards = [0.1, 0.3, 0.2, 0.3, 0.25]
    evaluations = scored(*rewards)
    config = config_of(output_directory=str(tmp_path), experiment_name="run", early_stopping_patience=3)
    run = RunDirectory.create(config)
    splits = {"held_out": EvaluationSplit([sample(i, 0.0).prompt for i in range(3)], [[1]] * 3, [0] * 3)}
    for done, each in enumerate(evaluations):
        for split in each.splits:
            run.write_evaluation(split.split, each.iteration, split.record(each.iteration))
        # the next process repeats the evaluation at which this one ended
        repeated = [*past_evaluations(run, splits, config, each.iteration), each]
        assert early_stop(config, repeated) == early_stop(config, evaluations[: done + 1])
    assert early_stop(config, evaluations) is not None


def test_an_evaluation_that_an_uninterrupted_run_does_not_make_does_not_count() -> None:
    config = config_of(early_stopping_patience=1)
    extended = [evaluated(0, 0.1), evaluated(3, 0.05), evaluated(5, 0.2)]  # the run had ended after 3 updates
    assert early_stop(config, extended[:2]) is None
    assert early_stop(config, extended) is None
    assert early_stop(config.model_copy(update={"eval_freq": 3}), extended[:2]) is not None


def test_a_label_that_no_answer_has_counts_as_none(tmp_path) -> None:
    config = config_of(early_stopping_metric="eval/held_out/labels/right", early_stopping_patience=1)
    none, all_right = evaluated(0, 0.5), evaluated(5, 0.5, label="right")
    assert early_stop(config, [none, all_right]) is None
    assert early_stop(config, [none, evaluated(5, 0.5)]) is not None
    assert early_stop(config, [none, all_right, evaluated(10, 0.5)]) is not None


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        (REWARD, ""),
        ("eval/a/pass@4/mean", ""),
        ("eval/a/b/reward/ci95_low", ""),
        ("eval/a/tokens/mean", ""),
        ("eval/a/metrics/words/mean", ""),
        ("eval/a/labels/right", ""),
        ("eval/average/rewards/mean", "did you mean 'eval/average/reward/mean'?"),
        ("eval/a/reward", "did you mean 'eval/a/reward/mean'?"),
        ("eval/c/metrics/words/mean", "the evaluations have no such metric; "),
        ("eval/average/labels/right", "the evaluations have no such metric; "),
        ("eval/a/pass@8/mean", "did you mean 'eval/a/pass@"),
    ],
)
def test_a_metric_that_no_evaluation_can_have_is_refused_before_the_run(metric, hint) -> None:
    config = config_of(early_stopping_metric=metric, eval_n_samples=4, eval_temperature=1.0, pass_k=[4])
    if not hint:
        check_metric(config, ["a", "a/b"], several_turns=False)
        return
    with pytest.raises(UserError, match=rf"^--early-stopping-metric {metric}: ") as refused:
        check_metric(config, ["a", "a/b"], several_turns=False)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("figure", ["turns/mean", "too_long/mean", "failed/ci95_high"])
def test_a_metric_of_turns_needs_several(figure) -> None:
    config = config_of(early_stopping_metric=f"eval/held_out/{figure}")
    check_metric(config, ["held_out"], several_turns=True)
    conversation = {"conversation": [{"role": "assistant", "content": "x"}], "ended": "task"}
    assert config.early_stopping_metric in evaluated(0, 0.5, **conversation).metrics()
    with pytest.raises(UserError, match="the evaluations have no such metric"):
        check_metric(config, ["held_out"], several_turns=False)


def test_a_metric_of_the_task_that_is_not_there_is_refused_at_the_first_evaluation() -> None:
    config = config_of(early_stopping_metric="eval/held_out/metrics/word/mean")
    with pytest.raises(UserError, match="did you mean 'eval/held_out/metrics/words/mean'"):
        early_stop(config, [evaluated(0, 0.5, metrics={"words": 3.0})])
    found = config_of(early_stopping_metric="eval/held_out/metrics/words/mean", early_stopping_patience=1)
    assert early_stop(found, [evaluated(0, 0.5, metrics={"words": 3.0}), evaluated(5, 0.5)]) is not None


def test_without_evaluations_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"--early-stopping-patience needs evaluations, and there is nothing to eval"):
        check_metric(config_of(), [], several_turns=False)
    check_metric(config_of(early_stopping_patience=0), [], several_turns=False)
    check_metric(config_of(n_iterations=0), [], several_turns=False)


def test_the_rule_in_words() -> None:
    assert described(config_of()) == f"stops early if {REWARD} does not improve in 2 evaluations"
    finer = config_of(early_stopping_min_delta=0.01, early_stopping_patience=1)
    assert re.fullmatch(r"stops early if \S+ does not improve by at least 0\.01 in 1 evaluation", described(finer))
    assert described(config_of(early_stopping_patience=0)) == ""

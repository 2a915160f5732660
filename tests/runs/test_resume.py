"""Reopening an interrupted run: which settings may change, what counts as finished, what is read back."""

import json
import tomllib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header, Step
from esplug.config import RunConfig, flag_of, make_config, panel_of
from esplug.data.splits import EvaluationSplit
from esplug.errors import UserError
from esplug.evaluation.figures import Evaluation, Sample, SplitEvaluation
from esplug.runs.directory import RunDirectory
from esplug.runs.early_stopping import Stop
from esplug.runs.resume import check_environment, note_changes, past_evaluations, reopen, stored_config
from tests.helpers.files import files_no_longer_than

SETTINGS: dict[str, Any] = {"task": "custom", "n_iterations": 4, "experiment_name": "run", "n_vllm_engines": 1}
#: Another value for each setting that cannot just be doubled.
OTHERS: dict[str, Any] = {
    "engine_resource": "x",
    "reward_workers": 2,
    "trust_remote_code": True,
    "task": "other",
    "task_options": {"a": 1},
    "train_dataset": "x",
    "eval_dataset": "x",
    "model_name": "x",
    "checkpoint": "x",
    "dtype": "float32",
    "master_dtype": "model",
    "max_model_len": 4096,
    "antithetic": True,
    "sigma_schedule": "linear",
    "alpha_schedule": "cosine",
    "sigma_end": 0.0003,
    "alpha_end": 0.0003,
    "momentum": 0.5,
    "perturbation": "low-rank",
    "rank": 2,
    "members_per_batch": 3,
    "recipe": "fast",
    "profile": 1,
    "reward_shaping": "centered-ranks",
    "normalize_utilities": True,
    "max_turns": 2,
    "rollout": "vllm",
    "ship_model": True,
    "stop": ["x"],
    "eval_splits": ["x"],
    "pass_k": [1, 2],
    "use_gpus": "none",
    "master_device": "host",
    "gpu_memory_utilization": 0.4,
    "eval_limit": 3,
    "eval_temperature": 0.5,
    "train_temperature": 0.5,
    "train_top_p": 0.5,
    "checkpoint_every": 5,
    "eval_top_p": 0.5,
    "reward_concurrency": 4,
    "early_stopping_patience": 3,
    "early_stopping_metric": "eval/average/pass@1/mean",
    "early_stopping_min_delta": 0.1,
    "ray_address": "auto",
    "logging": ["none"],
    "output_directory": "x",
    "experiment_name": "x",
    "save_best_models": True,
    "wandb_project": "x",
    "notes": "x",
    "tags": ["x"],
    "system_prompt": "Think.",
    "chat_template_options": {"enable_thinking": False},
}
FREE = {"n_iterations", "model_name", "checkpoint", "eval_dataset"}


def make_run(folder: Path, *, steps: int, **settings: Any) -> tuple[Path, RunConfig]:
    config = make_config(SETTINGS, {"output_directory": str(folder)}, settings)
    run = RunDirectory.create(config)
    settings = config.model_dump(exclude_none=True)
    header = Header(Base("base", None, 5), "float32", config.seed, settings, config.rank)
    with SeedLog.create(run.seed_log, header) as log:
        for iteration in range(steps):
            log.append(Step(iteration, (0.5, -0.5), False, 100 + iteration))
    return run.path, config


def open_again(run: Path, config: RunConfig, allow_change: bool = False) -> tuple[int, RunConfig]:
    """Open a run and see that this changes nothing yet."""
    with ExitStack() as stack:
        before = contents(run)
        directory, log, found = reopen(run, config, allow_change=allow_change, stack=stack)
        assert contents(run) == before
        if log:
            note_changes(directory, config, {}, log)
        return len(log.steps) if log else 0, found


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}


@pytest.mark.parametrize("field", list(RunConfig.model_fields))
def test_what_changes_the_mathematics_is_refused_unless_allowed(field, tmp_path) -> None:
    schedules = {f"{name}_schedule": "linear" for name in ("sigma", "alpha") if field == f"{name}_end"}
    low_rank = {"perturbation": "low-rank"} if field in ("rank", "members_per_batch") else {}
    others = {"early_stopping_patience": 2} if field.startswith("early_stopping_") else {}
    others |= {"eval_n_samples": 4, "eval_temperature": 0.8} | schedules | low_rank
    run, before = make_run(tmp_path, steps=2, **others)
    value = OTHERS[field] if field in OTHERS else getattr(before, field) * 2
    now = make_config(before.model_dump(exclude_none=True), {field: value})
    assert now != before
    free = field in FREE or panel_of(field) in ("Evaluation", "Engines", "Output")
    if free:
        assert open_again(run, now)[0] == 2
        for name in ("config.toml", "config-from-iteration2.toml"):
            assert make_config(tomllib.loads((run / name).read_text())) == now
        return
    with pytest.raises(UserError, match=rf"--resume .*: {flag_of(field)} was ") as refused:
        open_again(run, now)
    assert "\n" not in str(refused.value)
    if field in ("seed", "master_dtype", "perturbation", "rank"):  # of which the log itself is made
        with pytest.raises(UserError, match="cannot change within a run"):
            open_again(run, now, allow_change=True)
    else:
        assert open_again(run, now, allow_change=True)[0] == 2
        assert open_again(run, now)[0] == 2  # what was allowed once holds from then on
        with pytest.raises(UserError, match=f"{flag_of(field)} was "):
            open_again(run, before)


def test_what_was_asked_of_the_first_process_alone_does_not_stand_in_the_way(tmp_path) -> None:
    from esplug.runs.settings import resolve

    schedule = {"sigma_schedule": "linear", "sigma_end": 0.0002}
    run, before = make_run(tmp_path, steps=2, task="countdown", profile=3, **schedule)
    with pytest.raises(UserError, match=r"^--recipe: a resumed run keeps its settings; give those to change"):
        resolve({"recipe": "fast"}, None, "train", run)
    config = resolve({"sigma_schedule": "constant", "n_iterations": 3}, None, "train", run).config
    assert (config.sigma_schedule, config.sigma_end, config.profile) == ("constant", None, None)
    config = resolve({}, None, "train", run).config
    assert config.sigma_end == before.sigma_end


@pytest.mark.parametrize("name", ["sigma_schedule", "alpha_schedule"])
def test_a_schedule_belongs_to_a_number_of_iterations(name, tmp_path) -> None:
    run, before = make_run(tmp_path, steps=2, **{name: "cosine"})
    more = make_config(before.model_dump(exclude_none=True), {"n_iterations": 8})
    with pytest.raises(UserError, match=r"--n-iterations was 4 and would be 8"):
        open_again(run, more)
    assert open_again(run, more, allow_change=True)[0] == 2


def test_what_was_allowed_in_iterations_since_lost_counts_no_more(tmp_path) -> None:
    run, config = make_run(tmp_path, steps=3)
    (run / "checkpoints" / "iteration-3").mkdir(parents=True)
    (run / "checkpoints" / "iteration-3" / "esplug.json").touch()
    allowed = config.model_copy(update={"sigma": 0.002})
    assert open_again(run, allowed, allow_change=True)[0] == 3
    content = bytearray((run / "seeds.log").read_bytes())
    content[content.index(b"\n") + 60] ^= 1  # in the second record
    (run / "seeds.log").write_bytes(content)
    other = config.model_copy(update={"sigma": 0.003})
    with pytest.raises(UserError, match=r"--sigma was 0.002"):
        open_again(run, other)
    assert open_again(run, other, allow_change=True)[0] == 1
    assert open_again(run, other)[0] == 1
    assert sorted(path.name for path in run.glob("config*")) == ["config-from-iteration1.toml", "config.toml"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["iteration-3-not-in-log"]


def test_damage_is_told_even_where_the_run_does_not_go_on(tmp_path, capsys) -> None:
    run, config = make_run(tmp_path, steps=3)
    content = bytearray((run / "seeds.log").read_bytes())
    content[content.index(b"\n") + 60] ^= 1
    (run / "seeds.log").write_bytes(content)
    with pytest.raises(UserError, match="--sigma was"), ExitStack() as stack:
        reopen(run, config.model_copy(update={"sigma": 0.5}), allow_change=False, stack=stack)
    assert "the record of iteration 1, at byte" in capsys.readouterr().out.replace("\n", " ")


def test_settings_of_another_version_are_read_as_far_as_they_are_known(tmp_path) -> None:
    config = make_config(SETTINGS, {"output_directory": str(tmp_path)})
    run = RunDirectory.create(config)
    settings = config.model_dump(exclude_none=True) | {"gone": 5}
    SeedLog.create(run.seed_log, Header(Base("base", None, 5), "float32", config.seed, settings)).close()
    assert open_again(run.path, config)[0] == 0


@pytest.mark.parametrize("field", ["sigma", "seed"])
def test_settings_changed_in_the_file_are_noticed_too(field, tmp_path) -> None:
    run, config = make_run(tmp_path, steps=2)
    edited = config.model_copy(update={field: getattr(config, field) * 2})
    (run / "config.toml").write_text(edited.to_toml())
    with pytest.raises(UserError, match=f"{flag_of(field)} was {getattr(config, field)}"):
        open_again(run, stored_config(run))
    if field == "sigma":
        assert open_again(run, stored_config(run), allow_change=True)[0] == 2
        assert open_again(run, stored_config(run))[0] == 2


def test_settings_that_do_not_fit_on_the_disk_leave_the_old_ones(tmp_path) -> None:
    run, config = make_run(tmp_path, steps=2)
    with files_no_longer_than(200), pytest.raises(OSError, match=r"config-from-iteration2.toml"):
        open_again(run, config.model_copy(update={"n_iterations": 9}))
    assert stored_config(run) == config
    assert not list(run.glob("config-*"))


def test_a_lost_log_does_not_start_the_run_over(tmp_path) -> None:
    run, config = make_run(tmp_path, steps=2)
    RunDirectory(run).write_iteration(0, {})
    (run / "seeds.log").rename(tmp_path / "mailed.log")
    with pytest.raises(UserError, match=r"seeds.log is missing.*put it back"):
        open_again(run, config)
    (run / "seeds.log").touch()
    with pytest.raises(UserError, match=r"seeds.log: empty"):
        open_again(run, config)


def test_a_run_that_had_no_iteration_yet_begins(tmp_path) -> None:
    run, config = make_run(tmp_path, steps=0)
    assert open_again(run, config)[0] == 0
    (run / "seeds.log").unlink()
    assert open_again(run, config)[0] == 0


def test_as_many_engines_as_before(tmp_path) -> None:
    config = make_config(SETTINGS, {"output_directory": str(tmp_path), "n_vllm_engines": None})
    run = RunDirectory.create(config, {"engines": {"n_engines": 3}}).path
    assert open_again(run, config)[1].n_vllm_engines == 3
    assert stored_config(run).n_vllm_engines is None


def test_a_finished_run_wants_more_iterations(tmp_path) -> None:
    run, config = make_run(tmp_path, steps=4)
    assert open_again(run, config)[0] == 4  # the model was not saved yet
    RunDirectory(run).final_model(4).mkdir(parents=True)
    with pytest.raises(UserError, match=r"4 iterations are done; .*--n-iterations.*8"):
        open_again(run, config)
    (run / "eval-output").mkdir()
    assert open_again(run, config)[0] == 4  # it evaluates, and that was not done yet
    (run / "results.json").write_text('{"iteration": 2}')
    assert open_again(run, config)[0] == 4
    (run / "results.json").write_text('{"iteration": 4}')
    with pytest.raises(UserError, match="4 iterations are done"):
        open_again(run, config)
    more = config.model_copy(update={"n_iterations": 9})
    assert open_again(run, more)[0] == 4
    for fewer, words in ((3, "4 iterations are done"), (0, "--n-iterations 0 leaves nothing")):
        with pytest.raises(UserError, match=words):
            open_again(run, config.model_copy(update={"n_iterations": fewer}))


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({}, False),
        ({"n_iterations": 9}, False),
        ({"notes": "x"}, False),
        ({"early_stopping_patience": 3}, True),
        ({"early_stopping_patience": 0}, True),
        ({"early_stopping_min_delta": 0.01}, True),
        ({"eval_freq": 1}, True),
        ({"eval_limit": 7}, True),
    ],
)
def test_a_run_that_stopped_early_goes_on_if_that_can_change(change, goes_on, tmp_path) -> None:
    run, config = make_run(tmp_path, steps=2, early_stopping_patience=2)
    now = make_config(config.model_dump(exclude_none=True), change)
    RunDirectory(run).write_status("stopped", stop=Stop("it did not improve"))
    assert open_again(run, config)[0] == 2  # a callback had stopped it
    RunDirectory(run).write_status("stopped", stop=Stop("it did not improve", by_settings=True))
    if goes_on:
        assert open_again(run, now)[0] == 2
        return
    with pytest.raises(UserError, match=r"it stopped early, as it did not improve; .*-patience, or .*-patience 0$"):
        open_again(run, now)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no run there"),
        (lambda folder: folder.mkdir(), "no run there"),
        (lambda folder: RunDirectory.create(make_config({"n_iterations": 0}, at(folder))), "an evaluation"),
        (lambda folder: damaged(folder, ""), r"settings are damaged .*n_iterations.*restore config.toml"),
        (lambda folder: damaged(folder, "sigma ="), r"settings are damaged .*not a TOML file.*restore config.toml"),
    ],
)
def test_what_cannot_be_resumed_says_why(make, words, tmp_path) -> None:
    make(tmp_path / "run")
    with pytest.raises(UserError, match=words):
        stored_config(tmp_path / "run")


def damaged(folder: Path, content: str) -> None:
    RunDirectory.create(make_config(SETTINGS, at(folder))).config.write_text(content)


def at(folder: Path) -> dict[str, Any]:
    return {"output_directory": str(folder.parent), "experiment_name": folder.name}


def test_other_training_data_is_refused_unless_allowed(tmp_path) -> None:
    path, config = make_run(tmp_path, steps=2)
    run, five, six = RunDirectory(path), {"train_data": {"rows": 5}}, {"train_data": {"rows": 6}}
    (path / "environment.json").write_text(json.dumps(five))
    with SeedLog.open(run.seed_log) as log:
        check_environment(run, five, allow_change=False)
        note_changes(run, config, five, log)
        assert not list(path.glob("environment-*"))
        with pytest.raises(UserError, match=r"training data.*--allow-change"):
            check_environment(run, six, allow_change=False)
        check_environment(run, six, allow_change=True)
        assert not list(path.glob("environment-*"))
        note_changes(run, config, six, log)
        assert json.loads((path / "environment-from-iteration2.json").read_text()) == six
        check_environment(run, six, allow_change=False)


def test_past_evaluations_come_back_as_they_were(tmp_path) -> None:
    config = make_config(SETTINGS, {"output_directory": str(tmp_path), "eval_freq": 2, "n_iterations": 9})
    run = RunDirectory.create(config)
    sample = Sample("a", 0, 0, "prompt", {"x": [1]}, "answer", 0.5, "label", None, True, 3, True, {"m": 0.25})
    splits = {"a": EvaluationSplit(["prompt", "other"], [[1], [2]], [{"x": [1]}, 2])}
    written = {}
    for iteration in (0, 2, 4):
        samples = [replace(sample, reward=iteration / 8), replace(sample, index=1, prompt="other", metrics={})]
        written[iteration] = Evaluation(iteration, [SplitEvaluation("a", samples, (1,), False)], 0.0)
        run.write_evaluation("a", iteration, written[iteration].splits[0].record(iteration))
    assert past_evaluations(run, splits, config, 4) == [written[0], written[2]]
    assert written[2].mean == past_evaluations(run, splits, config, 4)[1].mean
    longer = config.model_copy(update={"eval_freq": 3})  # the evaluation at 4 was the last, and is not made again
    assert past_evaluations(run, splits, longer, 4) == [written[0], written[2], written[4]]
    more = make_config(config.model_dump(), {"eval_n_samples": 8, "eval_temperature": 0.8, "pass_k": [1, 8]})
    assert past_evaluations(run, splits, more, 4) == []  # of one answer nobody knows pass@8
    run.evaluation("a", 2).write_text("{")  # damaged
    assert past_evaluations(run, splits, config, 4) == [written[0]]
    changed = {"a": EvaluationSplit(["prompt", "another"], [[1], [2]], [{"x": [1]}, 2])}
    assert past_evaluations(run, changed, config, 4) == []


def test_whether_the_task_decides_what_passes_holds_for_a_whole_past_evaluation(tmp_path) -> None:
    config = make_config(SETTINGS, {"output_directory": str(tmp_path)})
    run = RunDirectory.create(config)
    samples = [
        Sample("a", 0, 0, "prompt", 1, "answer", 0.5, "timeout", None, False, 3, True),
        Sample("b", 0, 0, "prompt", 1, "answer", 0.5, "right", True, True, 3, True),
    ]
    written = Evaluation(0, [SplitEvaluation(each.split, [each], (1,), True) for each in samples], 0.0)
    for split in written.splits:
        run.write_evaluation(split.split, 0, split.record(0))
    splits = dict.fromkeys("ab", EvaluationSplit(["prompt"], [[1]], [1]))
    (found,) = past_evaluations(run, splits, config, 1)
    assert found == written
    assert found.mean == written.mean == 0.5

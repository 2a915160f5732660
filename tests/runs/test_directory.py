"""What a run leaves on disk."""

import json
import os
import threading
from contextlib import ExitStack
from fractions import Fraction

import pytest

from esplug.config import make_config, read_toml
from esplug.errors import UserError
from esplug.runs import directory as run_directory
from esplug.runs.directory import RunDirectory, claim


def config(base, **settings):
    return make_config({"output_directory": str(base / "out"), "model_name": "owner/tiny"}, settings)


def test_a_run_has_folders_for_what_it_writes(tmp_path) -> None:
    run = RunDirectory.create(config(tmp_path, experiment_name="mine"))
    assert run.path == tmp_path / "out" / "mine"
    first = {"config.toml", "environment.json"}
    assert {entry.name for entry in run.path.iterdir()} == first
    run.write_evaluation("s", 0, {})
    run.write_iteration(0, {})
    run.write_results({"figures": {"mean": 0.5}})
    assert {entry.name for entry in run.path.iterdir()} == first | {"eval-output", "train-output", "results.json"}
    assert {folder.parent for folder in (run.checkpoints, run.evaluations, run.iterations, run.logs)} == {run.path}
    assert json.loads((run.path / "results.json").read_text()) == {"figures": {"mean": 0.5}}
    assert (run.path / "results.json").read_text().count("\n") > 3  # for people


def test_a_name_may_be_proposed_but_the_users_own_wins(tmp_path) -> None:
    names = [claim(config(tmp_path), "compare-a-b").name for _ in range(2)]
    assert names == ["compare-a-b", "compare-a-b-2"]
    assert claim(config(tmp_path, experiment_name="mine"), "compare-a-b").name == "mine"


def test_a_name_made_from_the_settings_gets_a_number_when_taken(tmp_path) -> None:
    names = [RunDirectory.create(config(tmp_path, seed=0)).path.name for _ in range(2)]
    first = "countdown-tiny-sigma0.001-alpha0.0005-n30-seed0"
    assert names == [first, f"{first}-2"]


def test_runs_that_start_together_get_directories_of_their_own(tmp_path) -> None:
    made, together = [], threading.Barrier(8)

    def create() -> None:
        together.wait()
        made.append(RunDirectory.create(config(tmp_path)).path)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8


def test_the_users_own_name_is_refused_when_taken(tmp_path) -> None:
    settings = config(tmp_path, experiment_name="mine")
    run = RunDirectory.create(settings)
    (run.path / "kept").write_text("x")
    with pytest.raises(UserError, match=r"--experiment-name mine: .*exists"):
        RunDirectory.create(settings)
    assert (run.path / "kept").read_text() == "x"
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_folder_that_cannot_be_written_is_one_line(name, tmp_path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"^--output-directory .*cannot be written"):
        RunDirectory.create(config(tmp_path, experiment_name=name))


def test_home_is_expanded(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = RunDirectory.create(make_config({"output_directory": "~/runs", "experiment_name": "mine"}))
    assert run.path == tmp_path / "runs" / "mine"


def test_the_configuration_comes_back_as_it_was(tmp_path) -> None:
    settings = config(
        tmp_path,
        experiment_name="mine",
        seed=2**63 - 1,
        sigma=0.1 + 0.2,
        alpha=1e-7,
        antithetic=True,
        task_options={"shots": 1, "level": "easy", "fine": 0.5, "on": True},
        stop=["</answer>", '"\n\\\t\u4e94'],
        logging=["jsonl"],
        use_gpus="none",
    )
    run = RunDirectory.create(settings)
    assert make_config(read_toml(str(run.path / "config.toml"))) == settings


def test_the_environment_says_versions_and_no_secrets(tmp_path, monkeypatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "PASSWORD", "USER", "LOGNAME", "HOSTNAME"):
        monkeypatch.setenv(name, f"secret-{name}")
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    run = RunDirectory.create(config(tmp_path))
    text = (run.path / "environment.json").read_text()
    written = json.loads(text)
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert written["packages"]["esplug"]
    assert written["packages"]["numpy"]
    assert "wandb" not in written["packages"]
    assert written["cores"] >= 1
    assert written["memory_gib"] > 0
    assert written["python"].startswith("3.")


@pytest.mark.parametrize(
    ("split", "file"),
    [
        ("countdown_eval", "model_eval_taskcountdown_eval_iteration3.json"),
        ("a-b.c", "model_eval_taska-b.c_iteration3.json"),
        ("../../up", "model_eval_task.._.._up-d1f83b3b_iteration3.json"),
        ("with space/slash\\:*", "model_eval_taskwith_space_slash___-1da5f146_iteration3.json"),
        ("\x00\n", "model_eval_task__-4e9e1bf7_iteration3.json"),
        ("fünf", "model_eval_taskfünf_iteration3.json"),
        ("", "model_eval_task_iteration3.json"),
    ],
)
def test_odd_split_names_stay_in_their_folder(split, file, tmp_path) -> None:
    run = RunDirectory.create(config(tmp_path))
    run.write_evaluation(split, 3, {"split": split})
    assert [entry.name for entry in run.evaluations.iterdir()] == [file]
    assert json.loads((run.evaluations / file).read_text(encoding="utf-8")) == {"split": split}


def test_records_are_json_that_people_can_read(tmp_path) -> None:
    run = RunDirectory.create(config(tmp_path))
    run.write_iteration(7, {"text": "\u4e94\n", "seed": 2**64 - 1, "target": Fraction(1, 2)})
    (file,) = run.iterations.iterdir()
    text = file.read_text(encoding="utf-8")
    assert file.name == "iteration7.json"
    assert "\u4e94" in text
    assert json.loads(text) == {"text": "\u4e94\n", "seed": 2**64 - 1, "target": "1/2"}


def test_a_record_is_never_seen_half_written(tmp_path, monkeypatch) -> None:
    run = RunDirectory.create(config(tmp_path))
    run.write_iteration(0, {"a": 1})

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(run_directory.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        run.write_iteration(0, {"a": 2})
    assert json.loads((run.iterations / "iteration0.json").read_text()) == {"a": 1}


def test_undefined_figures_are_null(tmp_path) -> None:
    run = RunDirectory.create(config(tmp_path))
    run.write_iteration(0, {"metrics": {"x": float("nan"), "y": 1.0}})
    assert json.loads((run.iterations / "iteration0.json").read_text()) == {"metrics": {"x": None, "y": 1.0}}


@pytest.mark.parametrize("target", ["\ud83d", {(1, 2): 3}])
def test_odd_targets_are_written(target, tmp_path) -> None:
    run = RunDirectory.create(config(tmp_path))
    run.write_evaluation("s", 0, {"samples": [{"target": target}]})
    assert len(list(run.evaluations.iterdir())) == 1


def test_a_name_in_use_tells_by_whom(tmp_path) -> None:
    with ExitStack() as stack:
        run = RunDirectory.create(config(tmp_path, experiment_name="mine"), stack=stack)
        with pytest.raises(UserError, match=f"exists; in use by process {os.getpid()} of "):
            RunDirectory.create(config(tmp_path, experiment_name="mine"))
    (tmp_path / "out" / "file").touch()
    with pytest.raises(UserError, match=r"--experiment-name file: .* exists; choose another name$"):
        RunDirectory.check(config(tmp_path, experiment_name="file"))
    run.seed_log.touch()
    with pytest.raises(
        UserError, match=f"exists; choose another name, or resume that run: esplug train --resume {run.path}"
    ):
        RunDirectory.check(config(tmp_path, experiment_name="mine"))

"""Paths of models and data: stored absolute, so that a run works from any directory, and never sent to the Hub."""

import json
from pathlib import Path

import pytest

from esplug.checkpoints.export import export
from esplug.config import make_config
from esplug.doctor.model import check_model
from esplug.doctor.stack import Stack
from esplug.errors import UserError
from esplug.runs.directory import RunDirectory
from esplug.runs.engines import create_seed_log
from esplug.runs.resume import inherited
from esplug.weights.master import MasterWeights
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.model_folders import LLAMA, PLAIN, make_folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory with a model and data."""
    make_folder(tmp_path / "here" / "models" / "tiny", {"config.json": LLAMA, "model.safetensors": PLAIN})
    (tmp_path / "here" / "data" / "owner").mkdir(parents=True)
    (tmp_path / "here" / "data" / "a.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("models/tiny", "{here}/models/tiny"),
        ("./models/../models/tiny/", "{here}/models/tiny"),
        ("~/here/models/tiny", "{here}/models/tiny"),
        ("Qwen/Qwen2.5-1.5B-Instruct@main", "Qwen/Qwen2.5-1.5B-Instruct@main"),
        ("models/other", "models/other"),
        ("./models/other", "./models/other"),
    ],
)
def test_an_existing_model_folder_is_stored_absolute(given, stored, here) -> None:
    config = make_config({"model_name": given, "checkpoint": given})
    assert config.model_name == config.checkpoint == stored.format(here=here)
    assert make_config(config.model_dump(exclude_none=True)) == config


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("data/a.jsonl", "{here}/data/a.jsonl"),
        ("data/a.jsonl, org/set:main@v1,data", "{here}/data/a.jsonl,org/set:main@v1,{here}/data"),
        ("data/owner:main", "{here}/data/owner:main"),
        ("org/set", "org/set"),
        ("data/a.jsonl,,x", "{here}/data/a.jsonl,,x"),
    ],
)
def test_existing_data_files_are_stored_absolute(given, stored, here) -> None:
    config = make_config({"train_dataset": given, "eval_dataset": given})
    assert config.train_dataset == config.eval_dataset == stored.format(here=here)


def test_a_comma_in_the_working_directory_does_not_split_a_source(here, monkeypatch, tmp_path) -> None:
    odd = tmp_path / "a,b"
    odd.mkdir()
    (odd / "x.jsonl").write_text("{}\n")
    (odd / "y.jsonl").write_text("{}\n")
    monkeypatch.chdir(odd)
    assert make_config({"eval_dataset": "x.jsonl"}).eval_dataset == str(odd / "x.jsonl")
    assert make_config({"eval_dataset": "x.jsonl,y.jsonl"}).eval_dataset == "x.jsonl,y.jsonl"


def test_a_run_can_be_exported_and_resumed_from_another_directory(here, monkeypatch, tmp_path) -> None:
    config = make_config({"model_name": "models/tiny", "train_dataset": "data/a.jsonl", "experiment_name": "run"})
    run = RunDirectory.create(config, {"python": "3"})
    checksum = MasterWeights.load(here / "models" / "tiny").checksum()
    create_seed_log(config, run, here / "models" / "tiny", checksum).close()
    monkeypatch.chdir("/")
    exported = export(here / "experiments" / "run", tmp_path / "out")
    assert exported.checksum == checksum
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == LLAMA
    before = inherited(here / "experiments" / "run", {})
    assert before["model_name"] == str(here / "models" / "tiny")
    assert before["train_dataset"] == str(here / "data" / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("models/other", "unreachable"),
        ("models/other", "unknown"),
        ("./models/tiny2", "unreachable"),
        ("/no/model", "unknown"),
        ("a/b/c", "unreachable"),
        ("~/no-model", "unknown"),
        ("nested/", "unreachable"),
    ],
)
def test_a_missing_local_folder_is_never_taken_for_a_hub_id(name, reached, here, monkeypatch, capfd) -> None:
    def hub(*_: object) -> None:
        if reached == "unknown":
            raise LookupError("404")

    for place in ("checkpoints.base_model", "doctor.model"):
        monkeypatch.setattr(f"esplug.{place}.hub_revision", hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: (_ for _ in ()).throw(OSError("away")))
    for arguments in (("train",), ("train", "--dry-run"), ("eval",)):
        code, _, err = run_cli(monkeypatch, capfd, *arguments, "--model-name", name, "--task", "countdown")
        (error,) = errors_of(err)
        assert code == 2
        assert f"--model-name {name}: no such folder" in error
        assert str(Path(name).expanduser().absolute()) in error
        assert not any(word in error for word in ("Hub", "hf ", "token"))
    (finding,) = check_model(make_config({"model_name": name}), Stack())[1]
    assert finding.state == "fail"
    assert not any(word in str(finding) for word in ("Hub", "hf ", "token"))


@pytest.mark.parametrize("flag", ["--checkpoint", "--base"])
def test_other_flags_of_models_say_the_same(flag, here, monkeypatch, capfd) -> None:
    config = make_config({"model_name": "models/tiny", "experiment_name": "run"})
    run = RunDirectory.create(config, {"python": "3"})
    create_seed_log(config, run, here / "models" / "tiny", 0).close()
    command = ("train", "--task", "countdown") if flag == "--checkpoint" else ("export", str(run.path), "--out", "out")
    code, _, err = run_cli(monkeypatch, capfd, *command, flag, "./models/other")
    (error,) = errors_of(err)
    assert code == 2
    assert f"{flag} ./models/other: no such folder ({here}/models/other)" in error
    assert "Hub" not in error


@pytest.mark.parametrize(("name", "words"), [("x.gguf", "quantised"), ("model.safetensors", "give its folder")])
def test_a_single_file_of_weights_is_not_a_model(name, words, here) -> None:
    from contextlib import ExitStack

    from esplug.checkpoints.starting_model import starting_model

    (here / name).write_bytes(b"1234")
    with ExitStack() as stack, pytest.raises(UserError, match=words):
        starting_model(name, None, None, here / "scratch", stack)

"""`esplug push`, with the real library against a small Hub on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from esplug.checkpoints import seed_log
from esplug.checkpoints.export import export
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.hub import TOKEN, FakeHub, fake_hub
from tests.helpers.secrets import secrets_in
from tests.helpers.seed_logs import make_log, mixed_tensors

SETTINGS = {"task": "sums", "notes": "/home/someone/notes", "ray_address": "ray://secret-host:10001", "n_iterations": 4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Return a base model that has files which must not leave the machine."""
    folder = tmp_path / "someone" / "base"
    folder.mkdir(parents=True)
    save_file(mixed_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    config = {"dtype": "bfloat16", "_name_or_path": str(folder), "text_config": {"_name_or_path": "~/models/inner"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": "../base", "bos_token": "/", "x": "/tmp"})
    )
    (folder / "tokenizer.json").write_text("[]")
    (folder / "LICENSE").write_text("Apache-2.0")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base model's own card\n")
    (folder / "notes.txt").write_text("private")
    (folder / "credentials.json").write_text('{"key": "private"}')
    (folder / "optimizer.bin").write_bytes(b"private")
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """Return a run that has no saved model."""
    folder = tmp_path / "experiments" / "mine"
    folder.mkdir(parents=True)
    make_log(folder / "seeds.log", base, settings=SETTINGS)
    (folder / "config.toml").write_text('task = "sums"\nn_iterations = 4\n')
    return folder


@pytest.fixture
def hub(monkeypatch):
    with fake_hub() as found:
        found.use(monkeypatch)
        yield found


@pytest.fixture
def push(monkeypatch, capfd):
    """Return a function that runs `esplug push` and returns exit status, output and errors."""
    return lambda *arguments: run_cli(monkeypatch, capfd, "push", *map(str, arguments))


def save_model(run: Path) -> Path:
    """Save a run's model, with the base's card, as the trainer does."""
    folder = run / "checkpoints" / "checkpoint-es_fine_tuned_iteration_4"
    folder.parent.mkdir()
    export(run / "seeds.log", folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base model's own card\n")
    return folder


@pytest.mark.parametrize("saved", [False, True])
def test_the_model_arrives_with_its_card_and_nothing_private(
    saved, push, run, base, hub: FakeHub, monkeypatch, tmp_path
) -> None:
    if saved:
        save_model(run)
        base.rename(tmp_path / "gone")  # it is not needed
    before = sorted(run.rglob("*"))
    code, out, err = push(run, "--repo", "me/tuned")
    assert (code, out, err) == (0, f"uploaded {hub.url}/me/tuned\n", "")
    files = hub.repos["me/tuned"]["main"]
    assert set(files) == {
        *("README.md", "LICENSE", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    }
    monkeypatch.chdir(tmp_path)
    received = tmp_path / "received"
    received.mkdir()
    for name, content in files.items():
        (received / name).write_bytes(content)
    if not saved:
        export(run, tmp_path / "again")
        assert (tmp_path / "again" / "model.safetensors").read_bytes() == files["model.safetensors"]
    config = json.loads(files["config.json"])
    assert config == {"dtype": "bfloat16", "_name_or_path": "base", "text_config": {"_name_or_path": "inner"}}
    assert json.loads(files["tokenizer_config.json"]) == {"name_or_path": "base", "bos_token": "/", "x": "/tmp"}
    card = files["README.md"].decode()
    assert "fine-tuned on sums" in card
    assert "license: apache-2.0" in card
    assert "base model's own card" not in card
    assert secrets_in(Path("received"), [TOKEN, str(tmp_path), "someone", "secret-host", "private"]) == []
    assert len(hub.commits) == 1
    assert hub.commits[0].startswith("esplug: iteration 4, checksum ")
    assert sorted(run.rglob("*")) == before, "temporary files are gone"


def test_a_private_repository_and_a_branch(push, run, hub: FakeHub) -> None:
    code, out, _ = push(run, "--repo", "tuned", "--private", "--branch", "at-2", "--iteration", 2)
    assert (code, out) == (0, f"uploaded {hub.url}/me/tuned/tree/at-2\n")
    assert hub.repos["me/tuned"]["private"] is True
    assert hub.repos["me/tuned"]["main"] == {}
    assert "after 2 iterations" in hub.repos["me/tuned"]["at-2"]["README.md"].decode()
    assert push(run, "--repo", "me/tuned", "--revision", "main")[0] == 0
    assert "model.safetensors" in hub.repos["me/tuned"]["main"]


def test_an_iteration_that_ends_during_an_upload_waits_for_the_next(
    push, run, hub: FakeHub, monkeypatch, tmp_path
) -> None:
    """Push has read three iterations when the run writes its fourth."""
    monkeypatch.setattr("esplug.checkpoints.seed_log.read", lambda log, _, read=seed_log.read: read(log, 3))
    assert push(run, "--repo", "me/tuned")[0] == 0
    export(run, tmp_path / "third", iteration=3)
    files = hub.repos["me/tuned"]["main"]
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.commits[0].startswith("esplug: iteration 3, checksum ")


def test_a_public_repository_gets_nothing_private(push, run, hub: FakeHub) -> None:
    hub.repos["me/tuned"] = {"private": False, "main": {}}
    code, _, err = push(run, "--repo", "me/tuned", "--private")
    assert (code, len(errors_of(err))) == (2, 1)
    assert "exists and is public, so nothing was uploaded" in err
    assert hub.repos["me/tuned"]["main"] == {}


def test_a_file_with_the_token_stays(push, run, base, hub: FakeHub) -> None:
    (base / "LICENSE").write_text(f"mine: {TOKEN}")
    code, out, err = push(run, "--repo", "me/tuned")
    assert code == 2
    assert "LICENSE holds your Hugging Face token" in err
    assert TOKEN not in out + err
    assert hub.repos == {}


@pytest.mark.parametrize("saved", [False, True])
def test_a_dry_run_lists_files_without_a_network_or_a_token(saved, push, run, base, hub: FakeHub, monkeypatch) -> None:
    if saved:
        save_model(run)
    hub.use(monkeypatch, token="")
    code, out, err = push(run, "--repo", "me/tuned", "--dry-run")
    assert (code, err, hub.requests) == (0, "", [])
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert f"model.safetensors {(base / 'model.safetensors').stat().st_size:,}" in lines
    assert any(line.startswith("README.md ") for line in lines)
    assert lines[-2:] == ["left out: credentials.json, esplug.json, notes.txt", "nothing was uploaded (--dry-run)"]


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("{run} --repo a/b/c", {}, "--repo 'a/b/c': not the name of a repository"),
    ("{run} --repo a:b", {}, "--repo 'a:b': not the name of a repository"),
    ("{run} --repo x.git", {}, "--repo 'x.git': not the name of a repository"),
    ("{tmp}/experiments/mien --repo me/x", {}, "no such directory; did you mean {run}?"),
    ("{base} --repo me/x", {}, "{base}: not a run's directory"),
    ("{run} --repo me/x --iteration 9", {}, "--iteration 9: there are only 4 iterations"),
    ("{run} --repo me/x --iteration 0", {}, "--iteration 0: must be 1 or more"),
    ("{run} --repo me/x", {"token": ""}, "--repo me/x: no Hugging Face token; run `hf auth login`, or set HF_TOKEN"),
    ("{run} --repo me/x", {"token": "hf_wrong"}, "check the network and the token (`hf auth login`)"),
    ("{run} --repo others/x", {}, "--repo others/x: not uploaded ("),
    ("{run} --repo me/x", {"ENDPOINT": "http://127.0.0.1:9"}, "--repo me/x: not uploaded ("),
    ("{run} --repo me/x", {"HF_HUB_OFFLINE": True}, "--repo me/x: not uploaded ("),
    ("{run} --repo me/x --base {tmp}/none", {}, "--base {tmp}/none: no such folder"),
]


@pytest.mark.parametrize(("arguments", "changes", "words"), MISTAKES)
def test_mistakes_are_one_line(arguments, changes, words, push, run, base, hub: FakeHub, monkeypatch, tmp_path) -> None:
    hub.use(monkeypatch, **changes)
    places = {"run": run, "base": base, "tmp": tmp_path}
    code, out, err = push(*arguments.format(**places).split())
    assert (code, out, len(err.splitlines()), len(errors_of(err))) == (2, "", 1, 1), err
    assert words.format(**places) in err
    assert hub.repos == {}


def test_a_missing_base_is_one_line(push, run, base, hub: FakeHub, tmp_path) -> None:
    moved = base.rename(tmp_path / "moved")
    code, out, err = push(run, "--repo", "me/x")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "no such folder" in err
    assert "--base" in err
    assert push(run, "--repo", "me/x", "--base", moved)[0] == 0
    save_file({**mixed_tensors(), "scalar": torch.tensor(0.4)}, moved / "model.safetensors", metadata={"format": "pt"})
    code, out, err = push(run, "--repo", "me/y", "--base", moved)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "not the model that the run started from" in err
    assert list(hub.repos) == ["me/x"]


def test_a_run_without_iterations_has_nothing_to_upload(push, run, base, hub: FakeHub) -> None:
    (run / "seeds.log").unlink()
    SeedLog.create(run / "seeds.log", Header(Base(str(base), None, 1), "float32", 1)).close()
    code, _, err = push(run, "--repo", "me/x")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no iteration is done yet" in err

"""Every kind of starting weights becomes a model folder."""

import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import esplug.checkpoints.starting_model as starting_module
from esplug.checkpoints.export import export
from esplug.checkpoints.folders import save_model
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header, Step
from esplug.checkpoints.starting_model import kind_of, starting_model
from esplug.errors import UserError
from esplug.weights.master import MasterWeights


@pytest.fixture
def base(tiny_model, tmp_path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def work(tmp_path) -> Path:
    return tmp_path / "deep" / "scratch"


def make_run(run: Path, start: Path, name: str, settings: Any = None, revision: str | None = None) -> MasterWeights:
    """Write the log of a run that started from the weights in ``start``, recorded as ``name``."""
    run.mkdir()
    master = MasterWeights.load(start)
    header = Header(Base(name, revision, master.checksum()), "float32", 3, settings or {})
    with SeedLog.create(run / "seeds.log", header) as log:
        for number in range(2):
            step = Step(number, (0.01, -0.02), False, 0)
            master.update(step.seeds(3), step.coefficients)
            log.append(Step(number, step.coefficients, False, master.checksum()))
    return master


def checksum(folder: Path) -> int:
    return MasterWeights.load(folder).checksum()


def find(model_name: object, checkpoint: object = None, *, scratch: Path, revision: str | None = None) -> int:
    """Return the checksum of the starting weights."""
    given = None if checkpoint is None else str(checkpoint)
    with ExitStack() as stack:
        folder = starting_model(str(model_name), given, revision, scratch, stack)
        assert (folder / "config.json").is_file()
        assert (folder / "tokenizer.json").is_file()
        found = checksum(folder)
    assert not scratch.exists() or not any(scratch.iterdir()), "nothing is left"
    return found


# --- what it may be --------------------------------------------------------------------------------------------


def test_a_folder_is_used_in_place(base, work) -> None:
    with ExitStack() as stack:
        assert starting_model(str(base), None, None, work, stack) == base
        assert starting_model("no/such/model", str(base), None, work, stack) == base
    assert base.is_dir()
    assert not work.exists()


@pytest.mark.parametrize("kept_as", ["run", "log", "renamed log"])
@pytest.mark.parametrize("flag", ["--checkpoint", "--model-name"])
def test_a_run_is_replayed(base, tmp_path, work, kept_as, flag) -> None:
    master = make_run(tmp_path / "run", base, str(base))
    source = {"run": tmp_path / "run", "log": tmp_path / "run" / "seeds.log", "renamed log": tmp_path / "mail"}[kept_as]
    shutil.copyfile(tmp_path / "run" / "seeds.log", tmp_path / "mail")
    names = ("any/thing", source) if flag == "--checkpoint" else (source,)
    assert find(*names, scratch=work) == master.checksum()


def test_a_run_of_a_run_of_a_run_is_replayed_from_the_first(base, tmp_path, work) -> None:
    first = make_run(tmp_path / "1", base, str(base))
    first.save(tmp_path / "after-1")
    second = make_run(tmp_path / "2", tmp_path / "after-1", str(tmp_path / "1"))
    second.save(tmp_path / "after-2")
    third = make_run(tmp_path / "3", tmp_path / "after-2", str(tmp_path / "2" / "seeds.log"))
    assert find("x", tmp_path / "3", scratch=work) == third.checksum()
    assert export(tmp_path / "3", tmp_path / "out", iteration=1).iteration == 1
    found = export(tmp_path / "3", tmp_path / "out-2", base=tmp_path / "2").checksum
    assert found == third.checksum()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("base_kind", ["folder", "run"])
def test_a_pth_is_joined_with_its_model(base, tmp_path, work, base_kind) -> None:
    state = {name: tensor * 2 for name, tensor in load_file(base / "model.safetensors").items()}
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "expected.safetensors")
    make_run(tmp_path / "run", base, str(base))
    model = {"folder": base, "run": tmp_path / "run"}[base_kind]
    (tmp_path / "doubled").mkdir()
    shutil.move(tmp_path / "expected.safetensors", tmp_path / "doubled" / "model.safetensors")
    assert find(model, tmp_path / "w.pth", scratch=work) == checksum(tmp_path / "doubled")


def test_a_log_of_a_pth_is_exported_by_its_settings_or_with_base(base, tmp_path) -> None:
    state = {name: tensor * 2 for name, tensor in load_file(base / "model.safetensors").items()}
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / "doubled").mkdir()
    save_file(state, tmp_path / "doubled" / "model.safetensors")
    settings = {"model_name": str(base), "checkpoint": str(tmp_path / "w.pth")}
    master = make_run(tmp_path / "run", tmp_path / "doubled", settings["checkpoint"], settings)
    assert export(tmp_path / "run", tmp_path / "a").checksum == master.checksum()
    moved = (tmp_path / "w.pth").rename(tmp_path / "moved.bin")
    with pytest.raises(UserError, match=r"^the log's base model .*w\.pth: cannot be read .*with the --base of"):
        export(tmp_path / "run", tmp_path / "b")
    assert export(tmp_path / "run", tmp_path / "b", base=moved).checksum == master.checksum()
    assert checksum(tmp_path / "b") == checksum(tmp_path / "a")


@pytest.mark.parametrize("name", ["org/model", "org/model@main"])
def test_a_hub_id_is_pinned(base, tmp_path, work, monkeypatch, name) -> None:
    asked: list[str] = []
    monkeypatch.setattr(starting_module, "model_folder", lambda name, flag, use: asked.append(name) or base)
    torch.save(load_file(base / "model.safetensors"), tmp_path / "w.pth")
    find(name, revision="a" * 40, scratch=work)
    find("x", name, revision="a" * 40, scratch=work)
    find(name, tmp_path / "w.pth", revision="a" * 40, scratch=work)
    find(name, scratch=work)
    find(base, revision="a" * 40, scratch=work)
    assert asked == ["org/model@" + "a" * 40] * 3 + [name, str(base)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seeds.log", "log"),
        ("gone/seeds.log", "log"),
        ("gone/weights.pth", "pth"),
        ("org/model", "model"),
        ("", "model"),
        ("x" * 5000, "model"),
        ("~nobody9/x", "model"),
        ("\0", "model"),
    ],
)
def test_kinds_are_told_apart_by_name(name, expected) -> None:
    assert kind_of(name) == expected


def test_kinds_are_told_apart_by_content(base, tmp_path) -> None:
    assert kind_of(str(base)) == "model"
    make_run(tmp_path / "run", base, str(base))
    assert kind_of(str(tmp_path / "run")) == "log"
    (tmp_path / "run" / "seeds.log").rename(tmp_path / "run" / "mine")
    assert kind_of(str(tmp_path / "run")) == "model"
    assert kind_of(str(tmp_path / "run" / "mine")) == "log"
    assert kind_of(str(base / "config.json")) == "pth", "reading it then fails"


# --- what goes wrong -------------------------------------------------------------------------------------------


def refusal(*names: object, scratch: Path) -> str:
    with pytest.raises(UserError) as caught:
        find(*names, scratch=scratch)
    assert "\n" not in str(caught.value)
    assert not scratch.exists() or not any(scratch.iterdir())
    return str(caught.value)


def test_a_damaged_model_is_refused_and_the_file_named(base, tmp_path, work) -> None:
    saved = save_model(MasterWeights.load(base).save, base, tmp_path / "saved")
    assert find(saved, scratch=work) == checksum(base)
    (saved / "README.md").write_text("my notes")
    (saved / "mine.txt").write_text("my notes")
    assert find("x", saved, scratch=work) == checksum(base)
    (saved / "tokenizer.json").write_text("{}")
    assert refusal(saved, scratch=work).startswith(f"{saved / 'tokenizer.json'}: cut short")
    make_run(tmp_path / "run", base, str(saved))
    assert "tokenizer.json: cut short" in refusal(tmp_path / "run", scratch=work)


def test_a_pth_needs_a_model(base, tmp_path, work) -> None:
    torch.save(load_file(base / "model.safetensors"), tmp_path / "w.pth")
    message = refusal(tmp_path / "w.pth", scratch=work)
    assert message.startswith(f"--model-name {tmp_path / 'w.pth'}: only weights; give it as --checkpoint")
    message = refusal(tmp_path / "none", tmp_path / "w.pth", scratch=work)
    assert message == f"--model-name {tmp_path / 'none'}: no such folder"
    assert refusal(base, tmp_path / "no.pth", scratch=work).startswith(f"--checkpoint {tmp_path / 'no.pth'}: cannot be")
    (tmp_path / "es").mkdir()
    (tmp_path / "w.pth").rename(tmp_path / "es" / "pytorch_model.pth")
    assert refusal(base, tmp_path / "es", scratch=work).endswith(
        f"give the file itself, {tmp_path}/es/pytorch_model.pth"
    )


def test_a_run_whose_model_moved_says_what_to_do(base, tmp_path, work) -> None:
    make_run(tmp_path / "run", base, str(base))
    base.rename(tmp_path / "moved")
    message = refusal("x", tmp_path / "run", scratch=work)
    assert message.startswith(f"--checkpoint {tmp_path / 'run'}: the log's base model {base}: no such folder; give ")
    assert "--base of `esplug export`" in message


@pytest.mark.parametrize("length", [1, 2])
def test_runs_that_started_from_each_other_are_noticed(base, tmp_path, work, length) -> None:
    for number in range(length):
        make_run(tmp_path / str(number), base, str(tmp_path / str((number + 1) % length)))
    assert "started from" in refusal("x", tmp_path / "0", scratch=work)
    with pytest.raises(UserError, match="started from lead back to"):
        export(tmp_path / "0", tmp_path / "out")
    assert export(tmp_path / "0", tmp_path / "out", base=base).iteration == 2


def test_a_run_that_started_from_one_that_is_gone_says_so(base, tmp_path, work) -> None:
    make_run(tmp_path / "run", base, str(tmp_path / "gone" / "seeds.log"))
    message = refusal("x", tmp_path / "run", scratch=work)
    assert f"the log's base model {tmp_path}/gone/seeds.log: cannot be read" in message
    assert message.count("--base of `esplug export`") == 1


def test_a_folder_that_cannot_be_written_is_one_line(base, tmp_path) -> None:
    make_run(tmp_path / "run", base, str(base))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^[^\n]*file/scratch: cannot be written \(Not a directory\)$"):
        find("x", tmp_path / "run", scratch=tmp_path / "file" / "scratch")


def test_only_abandoned_temporary_folders_are_removed(base, tmp_path, work) -> None:
    make_run(tmp_path / "run", base, str(base))
    code = (
        "import os, sys; from contextlib import ExitStack; from pathlib import Path\n"
        "from esplug.checkpoints.starting_model import starting_model\n"
        "stack = ExitStack(); starting_model('x', sys.argv[1], None, Path(sys.argv[2]), stack)\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "run", work], check=False)
    (left,) = work.iterdir()
    with ExitStack() as first, ExitStack() as second:
        in_use = starting_model("x", str(tmp_path / "run"), None, work, first)
        starting_model("x", str(tmp_path / "run"), None, work, second)
        assert not left.exists()
        assert in_use.exists()
        assert len(list(work.iterdir())) == 2
    assert not list(work.iterdir())

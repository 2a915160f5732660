"""Model folders appear complete or not at all, and damage to them is found."""

import json
import os
import shutil
from hashlib import blake2b
from pathlib import Path

import pytest

from esplug.checkpoints.folders import newest_first, periodic_name, prune, save_model, verify
from esplug.errors import RunError, UserError

KEPT = {"config.json": "{}", "tokenizer.json": "[]", "chat_template.jinja": "{{ x }}", "README.md": "# base"}
WEIGHTS = [
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "consolidated.00.pth",
    "model.gguf",
    "optimizer.pt",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
]


@pytest.fixture
def base(tmp_path) -> Path:
    folder = tmp_path / "base"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "weights").write_text("old")
    for name, text in KEPT.items():
        (folder / name).write_text(text)
    for name in WEIGHTS:
        (folder / name).write_text("old")
    return folder


def write_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text("new")


def contents(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "esplug.json"]
    return {str(file.relative_to(folder)): file.read_text() for file in files}


def test_the_folder_holds_the_base_files_and_the_new_weights(base, tmp_path) -> None:
    target = tmp_path / "out" / "model"
    assert save_model(write_weights, base, target) == target
    assert contents(target) == KEPT | {"model.safetensors": "new"}
    assert [file.name for file in target.parent.iterdir()] == ["model"], "no temporary folder is left"


def test_files_behind_links_are_copied_as_files(base, tmp_path) -> None:
    snapshot = tmp_path / "snapshot"  # as in the Hub's cache
    snapshot.mkdir()
    (snapshot / "config.json").symlink_to(base / "config.json")
    target = save_model(write_weights, snapshot, tmp_path / "model")
    assert not (target / "config.json").is_symlink()
    assert (target / "config.json").read_text() == "{}"


def test_the_target_is_not_there_while_weights_are_being_written(base, tmp_path) -> None:
    target = tmp_path / "model"
    seen = []

    def write(folder: Path) -> None:
        seen.append((target.exists(), folder.parent == target.parent, (folder / "config.json").exists()))
        write_weights(folder)

    save_model(write, base, target)
    assert seen == [(False, True, True)]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["failure", "interrupt"])
def test_a_failure_leaves_an_older_model_as_it_was(error, base, tmp_path) -> None:
    target = save_model(write_weights, base, tmp_path / "model")

    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise error

    with pytest.raises(type(error)):
        save_model(fail, base, target)
    assert contents(target) == KEPT | {"model.safetensors": "new"}
    with pytest.raises(type(error)):
        save_model(fail, base, tmp_path / "deep" / "other")
    assert not any((tmp_path / "deep").iterdir())


def test_an_older_model_is_replaced_whole(base, tmp_path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "model-00001-of-00002.safetensors").write_text("older")
    save_model(write_weights, base, target)
    assert contents(target) == KEPT | {"model.safetensors": "new"}


def test_weights_written_on_another_machine_are_missed(base, tmp_path) -> None:
    with pytest.raises(RunError, match=r"not visible from the engine's machine"):
        save_model(lambda folder: None, base, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_all_is_on_the_disk_before_it_appears(base, tmp_path, monkeypatch) -> None:
    target = save_model(write_weights, base, tmp_path / "model")
    done: list[tuple[str, Path]] = []
    rename, sync = Path.rename, os.fsync

    def renamed(path: Path, to: Path) -> Path:
        done.append(("rename", to))
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(("sync", Path(os.readlink(f"/proc/self/fd/{fd}")))), sync(fd))
    )
    save_model(write_weights, base, target)
    temporary = tmp_path / ".model.part"
    files = {temporary / name for name in (*KEPT, "model.safetensors", "esplug.json")}
    assert {path for _, path in done[: len(files)]} == files
    assert done[len(files) :] == [
        ("sync", temporary),
        ("rename", tmp_path / ".model.old"),
        ("rename", target),
        ("sync", tmp_path),
    ]


def test_a_failure_names_the_place(base, tmp_path) -> None:
    for error in (OSError(28, "No space left on device"), OSError("odd")):

        def fail(folder: Path, error: Exception = error) -> None:
            raise error

        with pytest.raises(OSError, match=str(error.args[-1])) as caught:
            save_model(fail, base, tmp_path / "model")
        assert caught.value.filename == str(tmp_path / "model")
        assert caught.value.errno == (28 if len(error.args) == 2 else None)


def test_a_kill_between_the_renames_is_recovered(base, tmp_path) -> None:
    target = save_model(write_weights, base, tmp_path / "model")
    target.rename(tmp_path / ".model.old")
    (tmp_path / ".model.part").mkdir()

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_model(fail, base, target)
    assert contents(target) == KEPT | {"model.safetensors": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"base", "model"}


# --- the manifest ----------------------------------------------------------------------------------------------


def test_the_manifest_is_as_documented(base, tmp_path) -> None:
    (base / "esplug.json").write_text("another folder's")
    target = save_model(write_weights, base, tmp_path / "model")
    text = (target / "esplug.json").read_text()
    content = json.loads(text)
    assert text == json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
    listed = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
    assert content["files"].keys() == listed
    for name in listed:
        data = (target / name).read_bytes()
        assert content["files"][name] == {"bytes": len(data), "blake2b": blake2b(data, digest_size=16).hexdigest()}
    own = content.pop("hash")
    line = json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n"
    assert own == blake2b(line.encode(), digest_size=16).hexdigest()
    assert (content["format"], content["version"]) == ("esplug-model", 1)


def test_added_files_and_the_card_are_not_damage(base, tmp_path) -> None:
    target = save_model(write_weights, base, tmp_path / "model")
    verify(target)
    (target / "README.md").write_text("mine")
    (target / "added.json").write_text("mine")
    (target / "folder").mkdir()
    verify(target)
    (target / "README.md").unlink()
    verify(target)
    verify(base)  # which has no manifest
    verify(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("config.json", lambda path: path.unlink(), "missing, though esplug.json lists it"),
        ("model.safetensors", lambda path: path.write_text("ne"), "cut short: it has 2 bytes instead of 3"),
        ("model.safetensors", lambda path: path.write_text("newer"), "changed: it has 5 bytes instead of 3"),
        ("tokenizer.json", lambda path: path.write_text("{}"), "changed: its bytes are not those"),
        ("esplug.json", lambda path: path.write_text("{}"), "changed or cut short"),
        ("esplug.json", lambda path: path.write_text("[" * 100_000), "changed or cut short"),
        ("esplug.json", lambda path: path.write_bytes(path.read_bytes() + b"\n"), "changed or cut short"),
        (
            "esplug.json",
            lambda path: path.write_bytes(path.read_bytes().replace(b'"bytes":2', b'"bytes":3')),
            "changed",
        ),
    ],
)
def test_damage_is_named(base, tmp_path, name, damage, words) -> None:
    target = save_model(write_weights, base, tmp_path / "model")
    damage(target / name)
    with pytest.raises(UserError) as caught:
        verify(target)
    assert str(caught.value).startswith(f"{target / name}: {words}")
    assert "\n" not in str(caught.value)


def test_a_newer_manifest_says_to_upgrade(base, tmp_path) -> None:
    (base / "esplug.json").write_text('{"files":{},"format":"esplug-model","hash":"","version":2}')
    with pytest.raises(UserError, match="written by a newer esplug, in version 2; upgrade esplug"):
        verify(base)


# --- periodic checkpoints --------------------------------------------------------------------------------------


@pytest.fixture
def periodic(base, tmp_path) -> Path:
    """A folder with checkpoints of four iterations, and other entries."""
    folder = tmp_path / "checkpoints"
    for iteration in (9, 10, 100, 20):
        save_model(write_weights, base, folder / periodic_name(iteration))
    save_model(write_weights, base, folder / "best-mean0.5")
    for name in ("iteration-30", ".iteration-40.part", "iteration-x"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    (folder / "iteration-50").touch()
    return folder


def test_complete_checkpoints_are_listed_newest_first(periodic) -> None:
    assert newest_first(periodic) == [(k, periodic / f"iteration-{k}") for k in (100, 20, 10, 9)]
    assert newest_first(periodic / "nowhere") == []


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_prune_removes_the_oldest_and_leftovers(periodic, keep) -> None:
    prune(periodic, keep)
    assert [k for k, _ in newest_first(periodic)] == [100, 20, 10, 9][:keep]
    left = {path.name for path in periodic.iterdir()}
    assert left - {f"iteration-{k}" for k in (100, 20, 10, 9)} == {
        "best-mean0.5",
        "iteration-30",
        "iteration-x",
        "iteration-50",
    }
    prune(periodic / "nowhere", keep)


def test_prune_restores_a_checkpoint_that_was_being_replaced(periodic) -> None:
    (periodic / "iteration-20").rename(periodic / ".iteration-20.old")
    assert [k for k, _ in newest_first(periodic)] == [100, 10, 9]
    prune(periodic, 3)
    assert [k for k, _ in newest_first(periodic)] == [100, 20, 10]


def test_prune_skips_folders_that_cannot_be_removed(periodic, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(Path, "rename", fail)
    prune(periodic, 1)
    assert len(newest_first(periodic)) == 4
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "rmtree", fail)
    prune(periodic, 1)
    assert len(newest_first(periodic)) >= 1

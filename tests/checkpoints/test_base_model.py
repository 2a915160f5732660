"""The base model's folder, here or on the Hub, and its size."""

import re
from pathlib import Path

import pytest

from esplug.checkpoints.base_model import model_folder, weights_size
from esplug.errors import UserError

# --- the folder ------------------------------------------------------------------------------------------


def test_a_folder_is_found_where_it_is(tiny_model, monkeypatch) -> None:
    assert model_folder(str(tiny_model)) == tiny_model
    monkeypatch.chdir(tiny_model.parent)
    assert model_folder(tiny_model.name) == tiny_model, "a relative path comes back absolute, for other processes"
    monkeypatch.setenv("HOME", str(tiny_model.parent))
    assert model_folder(f"~/{tiny_model.name}") == tiny_model


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no config.json"),
        (["model.safetensors"], "no config.json"),
        (["config.json"], "save_pretrained"),
        (["config.json", "pytorch_model.bin"], "save_pretrained"),
    ],
)
def test_an_incomplete_model_folder_is_an_error(files, words, tmp_path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=words) as caught:
        model_folder(str(tmp_path), "--checkpoint")
    assert str(caught.value).startswith(f"--checkpoint {tmp_path}: ")


@pytest.mark.parametrize("name", ["./no/model", "/no/model", "~/no-such-model", "a/b/c"])
def test_names_that_are_not_hub_ids_never_ask_the_hub(name, monkeypatch) -> None:
    monkeypatch.setattr("esplug.checkpoints.base_model.hub_revision", lambda *_: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match=f"^--model-name {re.escape(name)}: no such folder") as caught:
        model_folder(name)
    assert "Hub" not in str(caught.value)
    assert str(Path(name).expanduser().absolute()) in str(caught.value)


COMMIT = "c0ffee" * 6 + "c0de"


@pytest.mark.parametrize(
    ("name", "revision", "reached", "asked"),
    [
        ("org/model", None, COMMIT, {"revision": COMMIT, "local_files_only": False}),
        ("org/model@v1.2", "v1.2", COMMIT, {"revision": COMMIT, "local_files_only": False}),
        ("org/model@v1.2", "v1.2", None, {"revision": "v1.2", "local_files_only": True}),  # kept from an earlier time
    ],
)
def test_a_hub_id_is_fetched_at_its_commit(name, revision, reached, asked, tiny_model, monkeypatch) -> None:
    def snapshot(repo, allow_patterns, **how) -> str:
        assert (repo, how) == ("org/model", asked)
        return str(tiny_model)

    monkeypatch.setattr("esplug.checkpoints.base_model.hub_files", lambda *_: [])

    def hub_revision(*question) -> str | None:
        assert question == ("org/model", revision, "model")
        return reached

    monkeypatch.setattr("esplug.checkpoints.base_model.hub_revision", hub_revision)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert model_folder(name) == tiny_model.resolve()


def test_hub_failures_are_one_line(monkeypatch) -> None:
    def refuse(*_):
        raise LookupError("404 Not Found")

    def fail(*_, **__):
        raise ConnectionError("no route\nto the Hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("esplug.checkpoints.base_model.hub_files", lambda *_: [])
    for answer, words in (
        (refuse, r"not available from the Hub: 404 Not Found$"),
        (lambda *_: None, r"out of reach; .*hf download owner/model --local-dir DIR`, then give DIR$"),
        (lambda *_: COMMIT, r"not readable from the Hub \(no route\)$"),
    ):
        monkeypatch.setattr("esplug.checkpoints.base_model.hub_revision", answer)
        with pytest.raises(UserError, match=rf"^--model-name owner/model: .*{words}"):
            model_folder("owner/model")


# --- its size --------------------------------------------------------------------------------------------


def test_size_counts_bytes_and_elements_of_all_files(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4, dtype=torch.bfloat16), "scalar": torch.zeros(())}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(5), "empty": torch.zeros(0, 7)}, tmp_path / "2.safetensors")
    stored, elements = weights_size(tmp_path)
    assert elements == 3 * 4 + 1 + 5
    assert stored == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a tensor", b"\xff" * 100])
def test_damaged_weights_are_named(content, tmp_path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        weights_size(tmp_path)

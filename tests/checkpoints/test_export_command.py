"""`esplug export` on the command line, and the upload to the Hub."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from esplug.cli.export import export as export_command
from esplug.errors import UserError
from tests.helpers.seed_logs import make_log, same_files

app = typer.Typer()
app.command()(export_command)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_exports_and_prints_the_checksum(base: Path, tmp_path: Path) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--iteration", 3, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert f"checksum {masters[3].checksum():016x}" in result.output
    assert str(tmp_path / "out") in result.output.replace("\n", "")
    masters[3].save(tmp_path / "saved", torch.float32)
    same_files(tmp_path / "out", tmp_path / "saved")


def test_the_command_takes_a_base_and_reports_a_torn_log(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    (tmp_path / "seeds.log").write_bytes((tmp_path / "seeds.log").read_bytes()[:-1])
    moved = base.rename(tmp_path / "moved")
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--base", moved)
    assert "last record is torn" in result.output
    assert "iteration      3" in result.output
    assert isinstance(invoke(tmp_path / "seeds.log", "--out", tmp_path / "out").exception, UserError)


def test_out_is_required(tmp_path: Path) -> None:
    assert invoke(tmp_path / "seeds.log").exit_code == 2


class FakeApi:
    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012 (shared on purpose)
    error: Exception | None = None

    def create_repo(self, repo: str, **options: Any) -> SimpleNamespace:
        if self.error:
            raise self.error
        self.calls.append((repo, options))
        return SimpleNamespace(repo_id=f"me/{repo}")

    def upload_folder(self, **options: Any) -> None:
        assert (Path(options["folder_path"]) / "model.safetensors").is_file()
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    return FakeApi


def test_the_folder_is_uploaded(base: Path, tmp_path: Path, hub: type[FakeApi]) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "tuned")
    assert result.exit_code == 0, result.output
    assert hub.calls[0] == ("tuned", {"exist_ok": True})
    upload = hub.calls[1][1]
    assert (upload["repo_id"], upload["folder_path"]) == ("me/tuned", tmp_path / "out")
    assert f"{masters[-1].checksum():016x}" in upload["commit_message"]
    assert "https://huggingface.co/me/tuned" in result.output


def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(
    base: Path, tmp_path: Path, hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(tmp_path / "seeds.log", base)
    monkeypatch.setattr(hub, "error", ConnectionError("out of reach\nwith details"))
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "me/tuned")
    assert isinstance(result.exception, UserError)
    message = str(result.exception)
    assert message.startswith("--push-to-hub me/tuned: not uploaded (ConnectionError: out of reach); ")
    assert "hf auth login" in message
    assert "\n" not in message
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_a_token_the_real_library_gives_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    make_log(tmp_path / "seeds.log", base)
    script = (
        "import sys; from pathlib import Path; from esplug.errors import UserError\n"
        "from esplug.checkpoints.replayed_model import Exported; from esplug.cli.export import push\n"
        "try: push(Exported(Path(sys.argv[1]), 1, 2, 3, False), 'me/tuned')\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script, str(base)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("--push-to-hub me/tuned: not uploaded ("), done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_the_module_of_the_command_loads_nothing_heavy() -> None:
    script = (
        "import sys, esplug.cli.export, esplug.checkpoints.seed_log\n"
        "print([m for m in ('torch', 'numba', 'vllm', 'ray', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exporting_needs_neither_vllm_nor_ray(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    script = (
        "import sys; sys.modules['vllm'] = sys.modules['ray'] = None\n"
        "from pathlib import Path; from esplug.checkpoints.export import export\n"
        "export(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "seeds.log"), str(tmp_path / "out")], check=True, timeout=300
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()

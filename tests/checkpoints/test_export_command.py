"""`esplug export` on the command line, and the upload to the Hub."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from esplug.cli.export import export as export_command
from esplug.errors import UserError
from tests.helpers.hub import FakeHub, fake_hub
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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as found:
        found.use(monkeypatch)
        yield found


def test_the_folder_is_uploaded(base: Path, tmp_path: Path, hub: FakeHub) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "tuned")
    assert result.exit_code == 0, result.output
    assert hub.commits == [f"esplug: iteration 4, checksum {masters[-1].checksum():016x}"]
    files = hub.repos["me/tuned"]["main"]
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert files["README.md"] == (tmp_path / "out" / "README.md").read_bytes()
    assert f"{hub.url}/me/tuned" in result.output


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"ENDPOINT": "http://127.0.0.1:9"}, "not uploaded (ConnectError: "),
        ({"token": ""}, "no Hugging Face token; run `hf auth login`"),
    ],
)
def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(
    changes: dict[str, str], fault: str, base: Path, tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.use(monkeypatch, **changes)
    make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "me/tuned")
    assert isinstance(result.exception, UserError)
    message = str(result.exception)
    assert message.startswith(f"--push-to-hub me/tuned: {fault}")
    assert message.endswith(f"; the model is in {tmp_path / 'out'}")
    assert "hf auth login" in message
    assert "\n" not in message
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_name_that_is_none_is_found_before_the_export(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "a/b/c")
    assert str(result.exception).startswith("--push-to-hub 'a/b/c': not the name of a repository")
    assert not (tmp_path / "out").exists()


def test_the_command_that_serves_the_model_is_printed(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "with blank")
    assert f"esplug serve '{tmp_path / 'with blank'}'" in result.output.replace("\n", "")


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

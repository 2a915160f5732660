"""`esplug doctor` from the command line: its table, JSON, exit status and repairs."""

import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from esplug.doctor import checkup as checkup_module
from esplug.doctor import installation as quick
from esplug.doctor import repair as repair_module
from esplug.doctor.plugin_health import check_plugins
from esplug.doctor.stack import Stack
from esplug.plugins import list_plugins
from tests.helpers.cli import errors_of, run_cli


@pytest.fixture
def broken_plugins(tmp_path, monkeypatch) -> Path:
    """Install plugins that raise, kill their process or hang, beside the real ones."""
    folder = tmp_path / "site"
    (folder / "broken-1.0.dist-info").mkdir(parents=True)
    (folder / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "broken-1.0.dist-info" / "entry_points.txt").write_text(
        "[esplug.tasks]\nraising = broken_raising\n[esplug.shapings]\ndying = broken_dying\n"
        "[esplug.loggers]\nhanging = broken_hanging\n"
    )
    (folder / "broken_raising.py").write_text("raise RuntimeError('no [/bold] luck')")
    (folder / "broken_dying.py").write_text("import os; os._exit(3)")
    (folder / "broken_hanging.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_broken_plugin_is_a_failure_only_if_the_run_needs_it(broken_plugins, monkeypatch) -> None:
    tasks = [("task", "countdown"), ("task", "math")]
    few = [each for each in list_plugins() if (each.kind, each.name) in tasks or each.distribution == "broken"]
    monkeypatch.setattr("esplug.doctor.plugin_health.list_plugins", lambda: few)
    findings = check_plugins({("task", "raising"), ("task", "countdown")}, timeout=15)
    states = {str(finding): finding.state for finding in findings}
    assert states.pop("plugins: tasks countdown, math") == "ok"
    by_name = {name: next(text for text in states if name in text) for name in ("raising", "dying", "hanging")}
    assert [states[text] for text in by_name.values()] == ["fail", "warning", "warning"]
    assert "RuntimeError: no [/bold] luck" in by_name["raising"]
    assert "status 3" in by_name["dying"]
    assert "longer than 15 s" in by_name["hanging"]
    assert all("pip install -U broken" in text for text in by_name.values())


@pytest.fixture
def quick_checkup(monkeypatch) -> None:
    monkeypatch.setattr(checkup_module, "inspect_stack", lambda use_gpus: Stack())
    monkeypatch.setattr(checkup_module, "check_plugins", lambda needed: [])


def test_the_table_and_its_json_agree(quick_checkup, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    base = ["doctor", "--model-name", str(tiny_model), "--max-tokens", "8", "--output-directory", str(tmp_path / "x")]
    code, out, _ = run_cli(monkeypatch, capfd, *base)
    assert code == 0
    assert "training can work here" in out
    code, as_json, _ = run_cli(monkeypatch, capfd, *base, "--json")
    record = json.loads(as_json)
    assert (code, record["ok"]) == (0, True)
    for check in record["checks"]:
        assert check["check"] in out
        assert check["state"] in ("ok", "warning")
    assert {item["what"] for item in record["memory"]["items"]} >= {"weights", "master", "KV cache"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{ messages[0].content }}{{ bos_token }}{% if enable_thinking %}!{% endif %}{{ style }}",
            "enable_thinking, style",
        ),
        ("{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}", "--chat-template-option): none"),
        ("{% unheard_of %}", "--chat-template-option): unknown"),
        (None, "prompts must be text"),
    ],
)
def test_end_tokens_and_template_options_are_listed(
    template, words, quick_checkup, tiny_model, tmp_path, monkeypatch, capfd
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").unlink()
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    code, out, _ = doctor_in(tmp_path, model, monkeypatch, capfd, "--json")
    found = {check["check"]: check["found"] for check in json.loads(out)["checks"]}
    assert code == 0
    assert words in found["chat template"]
    assert re.search(r"at one of these tokens: \S+ \(\d+\)", found["answers"])


class Environment:
    """An environment whose CPU build of torch has CUDA builds beside it, until ``pip`` uninstalls them."""

    def __init__(self, monkeypatch, status: int = 0) -> None:
        self.commands: list[list[str]] = []
        self.present, self.status = {"torchvision": "0.28.0+cu130", "torchcodec": "0.17.0+cu130"}, status
        monkeypatch.setattr(quick, "unloadable", lambda: dict(self.present))
        pip = SimpleNamespace(run=self.pip, DEVNULL=subprocess.DEVNULL)
        monkeypatch.setattr(repair_module, "subprocess", pip)

    def pip(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.present = self.present if self.status else {}
        return subprocess.CompletedProcess(command, self.status)


UNINSTALL = ["-m", "pip", "uninstall", "-y", "torchvision", "torchcodec"]


def doctor_in(tmp_path, model, monkeypatch, capfd, *flags: str) -> tuple[int, str, str]:
    base = ["doctor", "--model-name", str(model), "--max-tokens", "8", "--output-directory", str(tmp_path / "x")]
    monkeypatch.setenv("COLUMNS", "300")
    return run_cli(monkeypatch, capfd, *base, *flags)


def test_cuda_builds_beside_a_cpu_torch_are_a_warning_that_says_whether_they_matter(
    quick_checkup, tiny_model, tmp_path, monkeypatch, capfd
) -> None:
    environment = Environment(monkeypatch)
    code, out, _ = doctor_in(tmp_path, tiny_model, monkeypatch, capfd)
    assert (code, environment.commands) == (0, [])
    for words in ("torchvision 0.28.0+cu130", "training on text needs none of them", "training can work here"):
        assert words in out
    quick.require_installation()  # a run does not repeat it
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("answer", "runs"), [("y\n", True), ("n\n", False), (None, True)])
def test_fix_runs_pip_if_the_user_agrees_and_checks_again(
    answer, runs, quick_checkup, tiny_model, tmp_path, monkeypatch, capfd
) -> None:
    environment = Environment(monkeypatch)
    terminal = io.StringIO(answer)
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    code, out, _ = doctor_in(tmp_path, tiny_model, monkeypatch, capfd, "--fix", *(["--yes"] if answer is None else []))
    assert (code, environment.commands) == (0, [[sys.executable, *UNINSTALL]] if runs else [])
    assert " ".join(UNINSTALL) in out
    assert out.count("training can work here") == 1 + runs
    assert ("Run it?" in out) == (answer is not None)


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--fix"], 0, "--fix: it asks before it changes anything"),  # no terminal
        (["--yes"], 0, "--yes: it answers the questions of --fix"),
        (["--fix", "--yes", "--json"], 0, "--json: --fix shows what pip prints"),
        (["--fix", "--yes"], 3, "--fix: pip failed with status 3"),
    ],
)
def test_fix_refuses_in_one_line(flags, status, words, quick_checkup, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    environment = Environment(monkeypatch, status)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code, _, err = doctor_in(tmp_path, tiny_model, monkeypatch, capfd, *flags)
    assert (code, len(errors_of(err)), len(environment.commands)) == (2, 1, bool(status))
    assert words in err


def test_fix_without_pip_says_so(quick_checkup, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    environment = Environment(monkeypatch)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: [])
    code, _, err = doctor_in(tmp_path, tiny_model, monkeypatch, capfd, "--fix", "--yes")
    assert (code, environment.commands) == (2, [])
    assert "has no pip" in errors_of(err)[0]


@pytest.mark.parametrize(
    ("arguments", "check", "words"),
    [
        (["--task-option", "lvel=easy"], "settings", "did you mean 'level'"),
        (["--sigma", "big"], "settings", "--sigma"),
        (["--config", "no/such.toml"], "settings", "no/such.toml"),
        (["--max-tokens", "5000"], "model", "--max-tokens 5000"),
        (["--train-dataset", "./no/such"], "data", "--train-dataset"),
    ],
)
def test_an_invalid_setting_is_a_failed_check_and_the_others_still_run(
    arguments, check, words, quick_checkup, tiny_model, monkeypatch, capfd
) -> None:
    monkeypatch.setattr("esplug.doctor.model.hub_revision", lambda *_: None)
    base = ["doctor", "--json", "--model-name", str(tiny_model), "--max-tokens", "8"]
    code, out, err = run_cli(monkeypatch, capfd, *base, *arguments)
    record = json.loads(out)
    failed = {each["check"]: each["found"] for each in record["checks"] if each["state"] == "fail"}
    assert (code, record["ok"], err) == (1, False, "")
    assert words in failed[check]
    assert {"Python", "vLLM", "CPU", "disk"} <= {each["check"] for each in record["checks"]}


def test_a_plugin_that_raises_while_loading_rows_is_a_failed_check(quick_checkup, tiny_model, monkeypatch, capfd):
    def explode(*_: object) -> None:
        raise ZeroDivisionError("by [/zero]")

    monkeypatch.setattr(checkup_module, "load_batch_source", explode)
    code, out, _ = run_cli(monkeypatch, capfd, "doctor", "--model-name", str(tiny_model), "--max-tokens", "8")
    assert code == 1
    assert "ZeroDivisionError" in out
    assert "[/zero]" in out
    assert "Traceback" not in out


def test_a_model_with_an_odd_config_is_a_failed_check(quick_checkup, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(tiny_model, odd)
    described = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(described | {"max_position_embeddings": "long"}))
    code, out, err = run_cli(monkeypatch, capfd, "doctor", "--json", "--model-name", str(odd), "--max-tokens", "8")
    failed = [check for check in json.loads(out)["checks"] if check["state"] == "fail"]
    assert (code, err, [check["check"] for check in failed]) == (1, "", ["model"])

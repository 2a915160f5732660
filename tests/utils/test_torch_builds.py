"""CUDA builds of torchvision and its kin beside a CPU build of torch: which they are, and that esplug hides them."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CPU_TORCH = "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n"
CUDA_TORCH = "__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n"
FRIENDS = ("torchvision", "torchaudio", "torchcodec")


@pytest.fixture
def installed(tmp_path):
    """Return a function that installs packages with these ``version.py`` and runs code where they come first."""

    def run(versions: dict[str, str], code: str, *before: str) -> str:
        for name, text in versions.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('operator does not exist')")
            (tmp_path / name / "version.py").write_text(text)
        path = os.pathsep.join([*before, str(tmp_path), os.getcwd()])
        environment = os.environ | {"PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    return run


HIDDEN = (
    "import esplug, sys, json, importlib.util\n"
    f"print(json.dumps([name for name in {FRIENDS} if importlib.util.find_spec(name) is None]))"
)


@pytest.mark.parametrize(
    ("torch", "friend", "hidden"),
    [
        (CPU_TORCH, "__version__ = '0.28.0+cu130'\n", True),
        (CPU_TORCH, "__version__ = '0.28.0+cpu'\n", False),
        (CPU_TORCH, "__version__ = '0.28.0'\n", False),  # built from source, or PyPI's for another platform
        (CPU_TORCH, "", False),
        (CUDA_TORCH, "__version__ = '0.28.0+cu130'\n", False),
        ("", "__version__ = '0.28.0+cu130'\n", False),
    ],
)
def test_only_cuda_builds_beside_a_cpu_build_of_torch_are_hidden(torch, friend, hidden, installed) -> None:
    found = json.loads(installed({"torch": torch} | dict.fromkeys(FRIENDS, friend), HIDDEN))
    assert found == (list(FRIENDS) if hidden else [])


@pytest.mark.parametrize("statement", ["import torchvision", "from torchvision.io import decode_image"])
def test_a_hidden_package_is_not_installed_for_python(statement, installed) -> None:
    code = f"import esplug\ntry:\n    {statement}\nexcept ModuleNotFoundError:\n    print('absent')"
    versions = {"torch": CPU_TORCH, "torchvision": "__version__ = '0.28.0+cu130'\n"}
    assert installed(versions, code) == "absent"


@pytest.mark.parametrize("hides", [True, False])
def test_processes_that_an_engine_starts_do_not_see_them_either(hides, installed, tmp_path) -> None:
    """Even those that never import esplug, such as the one in which vLLM inspects a model's class."""
    script = tmp_path / "site" / "sitecustomize.py"
    script.parent.mkdir()
    script.write_text("import os; os.environ['NEXT'] = 'ran'")  # the machine's own still runs
    look = "import os, importlib.util as u; print(u.find_spec('torchvision') is None, os.environ.get('NEXT'))"
    code = (
        "import os, subprocess, sys\n"
        + ("from esplug.utils.torch_builds import hide_in_children\n" * hides)
        + ("hide_in_children(); hide_in_children()\n" * hides)
        + "os.environ.pop('NEXT', None)\n"
        + f"print(subprocess.run([sys.executable, '-c', {look!r}], capture_output=True, text=True).stdout.strip())"
    )
    versions = {"torch": CPU_TORCH, "torchvision": "__version__ = '0.28.0+cu130'\n"}
    assert installed(versions, code, str(script.parent)) == f"{hides} ran"


def test_several_copies_of_esplug_and_the_own_script_all_start(installed, tmp_path) -> None:
    """As in a process of another environment that one with copies of its own starts."""
    at_start = Path("esplug/utils/at_start").resolve()
    copies = [shutil.copytree(at_start, tmp_path / name) for name in ("one", "two")]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("import sys; sys.own = True")
    versions = {"torch": CPU_TORCH, "torchvision": "__version__ = '0.28.0+cu130'\n"}
    look = "import sys, importlib.util as u; print(u.find_spec('torchvision') is None, hasattr(sys, 'own'))"
    assert installed(versions, look, *map(str, copies), str(tmp_path / "own")) == "True True"


def test_an_environment_without_cuda_builds_starts_its_processes_as_always(installed) -> None:
    code = (
        "import os; from esplug.utils.torch_builds import hide_in_children as hide; before = dict(os.environ); hide()"
    )
    assert installed({"torch": CUDA_TORCH}, f"{code}; print(before == dict(os.environ))") == "True"


def test_here_the_hidden_packages_cannot_be_loaded_and_torchvision_otherwise_can() -> None:
    from esplug.utils.torch_builds import COMPANIONS, unloadable

    failing = "import sys\nfor name in sys.argv[1:]:\n    try: __import__(name)\n    except Exception: print(name)"
    names = [name for name in COMPANIONS if name in unloadable() or name == "torchvision"]
    isolated = [sys.executable, "-I", "-c", failing, *names]  # does not import esplug, which hides them
    done = subprocess.run(isolated, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert set(done.stdout.split()) - {"torchvision"} == set(unloadable()) - {"torchvision"}
    assert ("torchvision" in done.stdout.split()) == (
        "torchvision" in unloadable() or importlib.util.find_spec("torchvision") is None
    )

"""Fixtures for all tests: tiny models with random weights, and the small pretrained model."""

import importlib
import os
from contextlib import suppress
from pathlib import Path

import pytest

from esplug.utils.console import get_console
from esplug.utils.torch_builds import hide_in_children
from tests.helpers.tiny import make_tiny_model

# Triton reads TRITON_INTERPRET once, at import; with it, kernels run on the CPU.
_before = os.environ.get("TRITON_INTERPRET", "0")
os.environ["TRITON_INTERPRET"] = "1"
with suppress(ImportError):
    import triton.language  # noqa: F401
os.environ["TRITON_INTERPRET"] = _before

os.environ.pop("RAY_ADDRESS", None)  # tests start clusters of their own
hide_in_children()  # some tests start programs that do not import esplug, such as vLLM's server

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def new_console() -> None:
    """Make a new console for each test; a console keeps the terminal width of its creation."""
    get_console.cache_clear()


@pytest.fixture(scope="module")
def interpreted():
    """Return a function that imports a module of Triton kernels for Triton's interpreter."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.import_module


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Return a function from (architecture, tied) to the folder of such a tiny model."""
    base, made = tmp_path_factory.mktemp("models"), {}

    def get(architecture: str = "llama", tied: bool = True) -> Path:
        key = (architecture, tied)
        if key not in made:
            made[key] = make_tiny_model(base / f"{architecture}-{'tied' if tied else 'untied'}", architecture, tied)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny_model(tiny_models) -> Path:
    return tiny_models("llama", True)


@pytest.fixture(scope="session")
def small_model() -> Path:
    """Folder of SmolLM2-135M-Instruct, which `make test` downloads."""
    folder = ROOT / "models" / "SmolLM2-135M-Instruct"
    assert (folder / "config.json").exists(), "run `make test`, or scripts/fetch_small_model.py, first"
    return folder

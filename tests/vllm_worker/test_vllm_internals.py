"""Private names of vLLM that esplug uses: each exists in the installed version, with the parameters that esplug passes.

Each module lists its names in ``VLLM_INTERNALS``: names in a module of vLLM, and attributes of ``module:Class``. An
attribute of an instance counts as there if its class or function assigns it. ``(...)`` lists parameters.
"""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import esplug

PACKAGE = Path(esplug.__file__).parent
ROOMS = "rollout", "vllm_worker"  # the only ones that may use private names
SOURCES = {
    f"{room}/{path.name}": ast.parse(path.read_text())
    for room in ROOMS
    for path in sorted((PACKAGE / room).glob("*.py"))
}

#: Runs in a process of its own, because importing vLLM changes the environment. Prints what is wrong with each name.
CODE = r"""
import importlib, inspect, json, re, sys

def sources(target):
    for each in getattr(target, "__mro__", [target]):
        if each.__module__.startswith("vllm"):
            yield inspect.getsource(each)

def attribute(target, name):
    if hasattr(target, name):
        return getattr(target, name)
    if any(name in vars(each).get("__annotations__", {}) for each in getattr(target, "__mro__", [])):
        return None
    if any(re.search(rf"\.{name}\b[^=\n]*=(?!=)", source) for source in sources(target)):
        return None
    raise AttributeError(f"{getattr(target, '__qualname__', target)} has no {name}")

def problem(entry):
    path, parameters = re.fullmatch(r"([^(]+)(?:\(([^)]*)\))?", entry).groups()
    module, _, names = path.partition(":")
    try:
        target = importlib.import_module(module)
        for name in names.split("."):
            target = attribute(target, name)
        if parameters is not None:
            there = inspect.signature(target).parameters
            missing = {each.strip() for each in parameters.split(",")} - {"", *there}
            if missing:
                return f"no parameter {', '.join(sorted(missing))} in ({', '.join(there)})"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""

entries = json.load(sys.stdin)
found = {entry: problem(entry) for entry in entries}
import vllm
print("\n" + json.dumps([vllm.__version__, found]))
"""


def internals(source: ast.Module) -> list[str]:
    """Return a module's ``VLLM_INTERNALS``, as ``module:object.attribute``, without importing the module."""
    for node in source.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VLLM_INTERNALS":
            return [
                owner + ("." if ":" in owner else ":") + name
                for owner, names in ast.literal_eval(node.value).items()
                for name in re.findall(r"[^\s(]+(?:\([^)]*\))?", names)
            ]
    return []


CASES = [(module, entry) for module, source in SOURCES.items() for entry in internals(source)]


def check(entries: list[str]) -> tuple[str, dict[str, str]]:
    """Return vLLM's version, and what is wrong with each name, if anything."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(entries), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    version, found = json.loads(done.stdout.splitlines()[-1])
    return version, found


WRONG = {
    "vllm.v1.core.sched.scheduler:Scheduler._no_such_method": "no _no_such_method",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.no_such_attribute": "no no_such_attribute",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.allocate_slots(request, no_such_parameter)": "no_such_parameter",
    "vllm.no_such_module:Scheduler": "No module named",
}


@pytest.fixture(scope="module")
def installed() -> tuple[str, dict[str, str]]:
    return check([*{entry for _, entry in CASES}, *WRONG])


@pytest.mark.vllm
@pytest.mark.parametrize(("module", "entry"), CASES)
def test_the_installed_vllm_has_this_name(module, entry, installed) -> None:
    version, problems = installed
    assert not problems[entry], f"vLLM {version} has moved {entry} ({problems[entry]}): adapt esplug/{module}"


@pytest.mark.vllm
@pytest.mark.parametrize("entry", WRONG)
def test_a_name_that_vllm_lacks_is_found(entry, installed) -> None:
    assert WRONG[entry] in installed[1][entry]


@pytest.mark.parametrize("module", SOURCES)
def test_each_import_from_vllm_is_listed(module) -> None:
    listed = internals(SOURCES[module])
    for node in ast.walk(SOURCES[module]):
        if isinstance(node, ast.ImportFrom) and re.match(r"vllm(\.|$)", node.module or ""):
            for name in {each.name for each in node.names} - {"current_platform"}:  # documented by vLLM
                target = rf"{node.module}:{name}\b" if name[0].isupper() or "_" in name else rf"{node.module}\.{name}:"
                assert any(re.match(target, entry) for entry in listed), f"{module} does not list {node.module}:{name}"


def test_other_rooms_import_no_private_modules_of_vllm() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ROOMS:
            found = re.findall(r"(?:from|import) (vllm\.[\w.]+)", path.read_text())
            assert set(found) <= {"vllm.lora.request"}, path

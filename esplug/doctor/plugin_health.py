"""Check that every installed plugin can be loaded, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from esplug.doctor.finding import Finding, State
from esplug.plugins import Kind, PluginInfo, list_plugins
from esplug.utils.text import brief

TIMEOUT = 60.0  # seconds for importing one plugin

_LOAD = (
    "import sys\n"
    "from esplug.errors import PluginError\n"
    "from esplug.plugins import load\n"
    "try:\n"
    "    load(sys.argv[1], sys.argv[2])\n"
    "except PluginError as error:\n"
    "    sys.stderr.write('\\n' + ' '.join(str(error).split()))\n"
    "    sys.exit(9)\n"
)


def check_plugins(needed: Collection[tuple[Kind, str]], timeout: float = TIMEOUT) -> list[Finding]:
    """Load every installed plugin. A broken plugin is a failure if the run needs it, and otherwise a warning."""
    plugins = list_plugins()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = list(pool.map(lambda plugin: _fault(plugin, timeout), plugins))
    working: dict[str, list[str]] = {}
    broken = []
    for plugin, fault in zip(plugins, faults, strict=True):
        if fault:
            state: State = "fail" if (plugin.kind, plugin.name) in needed else "warning"
            broken.append(Finding("plugin", state, *fault))
        else:
            working.setdefault(f"{plugin.kind}s", []).append(plugin.name)
    return [Finding("plugins", "ok", f"{kind} {', '.join(names)}") for kind, names in working.items()] + broken


def _fault(plugin: PluginInfo, timeout: float) -> tuple[str, str] | None:
    """Load a plugin in another process; return its fault and the remedy, or ``None`` if it loads."""
    upgrade = f"pip install -U {plugin.distribution}"
    command = [sys.executable, "-c", _LOAD, plugin.kind, plugin.name]
    try:
        nothing = subprocess.DEVNULL
        done = subprocess.run(command, stdin=nothing, stdout=nothing, stderr=subprocess.PIPE, timeout=timeout)
    except subprocess.TimeoutExpired:
        return f"{plugin}: loading takes longer than {timeout:g} s", upgrade
    if done.returncode == 0:
        return None
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    if done.returncode != 9:
        ended = f"{plugin}: loading ends the process with status {done.returncode}"
        return f"{ended} ({brief(last)})" if last else ended, upgrade
    fault, _, remedy = last.partition("; ")
    return brief(fault), brief(remedy)

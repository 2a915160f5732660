"""Whether every installed plugin can be loaded, each tried in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from esplug.doctor.finding import Finding
from esplug.plugins import Kind, PluginInfo, list_plugins
from esplug.utils.text import brief

TIMEOUT = 60.0
"""Seconds that importing one plugin may take."""

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


def plugin_health(used: Collection[tuple[Kind, str]], timeout: float = TIMEOUT) -> list[Finding]:
    """Load every installed plugin.

    Args:
        used: kinds and names of those that the run needs. Any other may be broken without harm.
        timeout: seconds that each may take.

    Returns:
        One finding for those of a kind that are well, and one for each that is not.
    """
    plugins = list_plugins()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        faults = list(pool.map(lambda plugin: _fault(plugin, timeout), plugins))
    well: dict[str, list[str]] = {}
    for plugin, fault in zip(plugins, faults, strict=True):
        if not fault:
            well.setdefault(f"{plugin.kind}s", []).append(plugin.name)
    findings = [Finding("plugins", "ok", f"{kind} {', '.join(names)}") for kind, names in well.items()]
    for plugin, fault in zip(plugins, faults, strict=True):
        if fault:
            needed = (plugin.kind, plugin.name) in used
            findings.append(Finding("plugin", "fail" if needed else "warning", *fault))
    return findings


def _fault(plugin: PluginInfo, timeout: float) -> tuple[str, str] | None:
    """Return what is wrong with a plugin, and the remedy."""
    command = [sys.executable, "-c", _LOAD, plugin.kind, plugin.name]
    try:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"{plugin}: loading it takes longer than {timeout:g} s", f"pip install -U {plugin.distribution}"
    if done.returncode == 0:
        return None
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    if done.returncode != 9:
        ended = f"{plugin}: loading it ends the process with status {done.returncode}"
        return f"{ended} ({brief(last)})" if last else ended, f"pip install -U {plugin.distribution}"
    fault, _, remedy = last.partition("; ")
    return brief(fault), brief(remedy)

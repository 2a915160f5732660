"""Repair: runs the pip commands of the doctor's findings."""

import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable

from esplug.doctor.finding import Finding
from esplug.errors import UserError
from esplug.utils.torch_builds import unloadable


def repair(findings: Iterable[Finding], agreed: Callable[[str], bool]) -> bool:
    """Run the findings' pip commands in this environment, those that ``agreed(command)``. Returns whether any ran.

    Raises:
        UserError: this environment has no pip, or pip fails.
    """
    commands = dict.fromkeys(finding.fix for finding in findings if finding.fix)
    # find_spec("pip") would make setuptools give up its own distutils.
    if commands and not any(importlib.metadata.distributions(name="pip")):
        raise UserError(f"--fix: {sys.executable} has no pip; apply the remedies with the installer that you use")
    ran = False
    for arguments in commands:
        command = [sys.executable, "-m", "pip", *arguments]
        if not agreed(shlex.join(command)):
            continue
        if status := subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            raise UserError(f"--fix: pip failed with status {status}; its output says why")
        ran = True
    unloadable.cache_clear()
    return ran

"""Proof that a sandbox holds: a program inside tries to break out before any answer runs."""

import functools
import sys
import tempfile
from pathlib import Path

from esplug_tasks_code.judge import decode
from esplug_tasks_code.sandbox import KINDS, Limits, Sandbox, SandboxError

#: What programs can do in ``rlimits``, because they run as the user among the user's files.
ALLOWED = {
    "bubblewrap": frozenset[str](),
    "rlimits": frozenset({"read files", "write files", "read installed packages"}),
}
_WEAKER = "programs can read, change and delete all files that you can"

_PROBE = """
import os, socket

def probe(secret, folder, package, bytes_too_many):
    def start_processes():
        if not os.fork():
            os._exit(0)
    attempts = {
        "read files": lambda: open(secret).read(),
        "write files": lambda: open(os.path.join(folder, "written"), "w").close(),
        "read installed packages": lambda: open(package).read(),
        "open a socket": lambda: socket.socket(),
        "start processes": start_processes,
        "send signals": lambda: os.kill(os.getppid(), 0),
        "exceed the memory": lambda: bytearray(bytes_too_many),
    }
    possible = []
    for name, attempt in attempts.items():
        try:
            attempt()
            possible.append(name)
        except Exception:
            pass
    return possible
"""


@functools.cache
def proven(kind: str, limits: Limits) -> Sandbox:
    """Return a sandbox after a program in it has tried, and failed, to break out.

    With ``rlimits``, prints once what is not protected.

    Raises:
        ValueError: the sandbox does not exist, does not work here, or does not hold.
    """
    if kind not in KINDS:
        raise ValueError(f"sandbox must be one of {', '.join(KINDS)}, not {kind!r}")
    try:
        sandbox = Sandbox(kind, limits)
        breaches = possible(sandbox) - ALLOWED[kind]
    except (OSError, SandboxError) as error:
        raise ValueError(f"sandbox={kind} does not work here [{error}]; {_remedy(kind)}") from error
    if breaches:
        raise ValueError(
            f"sandbox={kind} does not hold here: programs can {', '.join(sorted(breaches))}; {_remedy(kind)}"
        )
    if kind == "rlimits":
        print(f"sandbox=rlimits: {_WEAKER}; use sandbox=bubblewrap, a container or a spare account", file=sys.stderr)
    return sandbox


def possible(sandbox: Sandbox) -> frozenset[str]:
    """Return what a program in a sandbox can do, of all that it should not.

    Raises:
        SandboxError: the sandbox or the program in it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text("secret")
        arguments = [str(secret), folder, __file__, (sandbox.limits.memory + 1) << 20]
        (reply,) = sandbox.calls(_PROBE, [("probe", arguments)]).values
        written = (Path(folder) / "written").exists()
    if reply is None:
        raise SandboxError(f"a program in it does not answer: {sys.executable} may need files elsewhere")
    found = decode(reply)
    return frozenset([*found, *(["write files"] if written else [])])


def _remedy(kind: str) -> str:
    if kind == "rlimits":
        return "use a Linux machine with libseccomp2"
    return f"install bubblewrap and allow user namespaces, or accept --task-option sandbox=rlimits, in which {_WEAKER}"

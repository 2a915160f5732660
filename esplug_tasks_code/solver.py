"""Program inside the sandbox that runs an answer: ``python solver.py ROLE FILE``, started by :mod:`.sandbox`.

``FILE`` is a descriptor with the answer's source. The role ``program`` executes it as a main program. The role
``calls`` defines its functions and calls them: standard input holds marshalled objects, first a secret, then calls
``(name, arguments, keyword arguments)``; each reply is a line on standard output, ``SECRET=VALUE`` or
``SECRET!EXCEPTION``. The first reply says whether the source could be executed.

It shares its process with the answer, which may change everything here. Nothing outside trusts the replies: they are
claims about return values, and the expected values are never inside. It imports as little as possible, for speed.
"""

from __future__ import annotations

import marshal
import os
import sys
from _json import encode_basestring_ascii

TYPE_CHECKING = False  # typing takes as long to import as Python to start
if TYPE_CHECKING:
    from typing import Any

TYPES = {list: "l", tuple: "t", set: "s", frozenset: "f"}


def encode(value: Any) -> str:
    """Return plain data as JSON, in which lists start with their type; :func:`esplug_tasks_code.judge.decode` reads it.

    Raises:
        TypeError: the value holds something else than plain data.
        RecursionError: it is nested too deeply, or holds itself.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return int.__repr__(value)
        case float():
            return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(text := float.__repr__(value), text)
        case str():
            return encode_basestring_ascii(str.__str__(value))
        case dict():
            return _listed("d", (f"[{encode(key)},{encode(item)}]" for key, item in dict.items(value)))
        case bytes():
            return _listed("b", [f'"{value.hex()}"'])
        case complex():
            return _listed("c", [encode(value.real), encode(value.imag)])
    for kind, tag in TYPES.items():
        if isinstance(value, kind):
            return _listed(tag, map(encode, value))
    raise TypeError(type(value).__name__)


def _listed(tag: str, items: Any) -> str:
    return f"[{','.join([encode_basestring_ascii(tag), *items])}]"


def _module(source: bytes) -> dict[str, Any]:
    """Execute a source as the main module, and return its names."""
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, "answer.py", "exec"), module.__dict__)
    return module.__dict__


def _call(names: dict[str, Any], name: str, arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """Call a function, or the method of a class ``Solution``, as LeetCode has it."""
    method = name not in names and "Solution" in names
    return (getattr(names["Solution"](), name) if method else names[name])(*arguments, **keywords)


def _attempt(secret: bytes, action: Any, *arguments: Any) -> tuple[Any, bytes]:
    """Return the result of an action and the reply that tells it."""
    try:
        result = action(*arguments)
        return result, secret + b"=" + encode(None if action is _module else result).encode() + b"\n"
    except BaseException as error:  # SystemExit and the like end only this call
        return None, secret + b"!" + type(error).__name__.encode(errors="replace") + b"\n"


def _serve(source: bytes) -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    secret = marshal.load(requests)

    def send(reply: bytes) -> None:
        while reply:
            reply = reply[os.write(replies, reply) :]

    names, reply = _attempt(secret, _module, source)
    send(reply)
    while names is not None:
        try:
            call = marshal.load(requests)
        except EOFError:
            break
        send(_attempt(secret, _call, names, *call)[1])
    os._exit(0)  # no thread or exit handler of the answer delays the end


def main() -> None:
    """Run the answer in the role that the command line names."""
    role, descriptor = sys.argv[1], int(sys.argv[2])
    with open(descriptor, "rb") as file:
        source = file.read()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sys.argv[:] = ["answer.py"]
    if role == "program":
        _module(source)
    else:
        _serve(source)


if __name__ == "__main__":
    main()

"""Program inside a second sandbox that runs assertions: ``python judge.py FILE``, started by :mod:`.sandbox`.

Data sets such as HumanEval and MBPP come with assertions as code. They run here, apart from the answer: its functions
are replaced by stand-ins, which send each call to the answer's sandbox and return plain data. ``FILE`` is a descriptor
with marshalled ``(secret, source, names, descriptor to the answer, descriptor from it)``. The source calls
``__stand_ins__`` to define the stand-ins, and ``__verdict__`` with one character for standard output: ``1`` or ``0``
after each assertion, ``x`` after a test that an exception ended early, and ``;`` after each test. ``.`` is the end.
"""

import builtins
import json
import marshal
import os
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_REPLY = 1 << 20  # bytes

_KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "s": set,
    "f": frozenset,
    "d": dict,
    "b": lambda items: bytes.fromhex(items[0]),
    "c": lambda items: complex(*items),
}


def decode(text: bytes) -> Any:
    """Return the plain data that :func:`esplug_tasks_code.solver.encode` wrote; nothing is executed.

    Raises:
        ValueError: the text is not of that form.
    """
    try:
        return _plain(json.loads(text))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError("not an encoded value") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        raise TypeError("a bare dictionary")
    if not isinstance(value, list):
        return value
    tag, *items = value
    return _KINDS[tag]([tuple(map(_plain, pair)) for pair in items] if tag == "d" else list(map(_plain, items)))


class _Link:
    """Connection to the answer's sandbox."""

    def __init__(self, secret: bytes, requests: BinaryIO, replies: BinaryIO) -> None:
        self._secret, self._requests, self._replies = secret, requests, replies
        self._send(secret)
        self.receive()

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a function of the answer."""
        self._send((name, arguments, keywords))
        return self.receive()

    def _send(self, message: Any) -> None:
        self._requests.write(marshal.dumps(message))
        self._requests.flush()

    def receive(self) -> Any:
        """Return the value of a reply, or raise the built-in exception that it names."""
        line = self._replies.readline(MAX_REPLY)
        kind, text = line[len(self._secret) :][:1], line[len(self._secret) + 1 :].strip()
        if not line.startswith(self._secret) or not line.endswith(b"\n") or kind not in b"=!":
            raise RuntimeError("the answer's process ended or sent something else")
        if kind == b"=":
            return decode(text)
        error = getattr(builtins, text.decode(errors="replace"), None)
        # StopIteration would end the loop around the call, and skip the assertions that are left.
        if isinstance(error, type) and issubclass(error, Exception) and error is not StopIteration:
            raise error
        raise RuntimeError("the answer raised an exception")


def main() -> None:
    """Run the assertions and report each."""
    with open(int(sys.argv[1]), "rb") as file:
        secret, source, names, to_answer, from_answer = marshal.load(file)
    verdicts = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    link = _Link(secret, os.fdopen(to_answer, "wb"), os.fdopen(from_answer, "rb"))

    def stand_in(function: str) -> Callable[..., Any]:
        return lambda *arguments, **keywords: link.call(function, *arguments, **keywords)

    stand_ins = {name: stand_in(function) for name, function in names.items()}
    namespace: dict[str, Any] = {"__verdict__": lambda verdict: os.write(verdicts, verdict.encode())}
    namespace["__stand_ins__"] = lambda: namespace.update(stand_ins)
    exec(compile(source, "tests.py", "exec"), namespace)
    os.write(verdicts, b".")
    os._exit(0)


if __name__ == "__main__":
    main()

"""Row maker: the program of a child process, ``python -m esplug_tasks_reasoning_gym.stream``.

It reads a request as JSON from standard input, and prints one line of JSON per generator: ``{"training": "[...]",
"held_out": "[...]"}`` or ``{"error": "..."}``. Some generators iterate over sets, so their rows depend on Python's hash
seed; the parent fixes it. Generators are Python code that may not terminate with unusual options, so each row has a
time limit.
"""

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from esplug_tasks_reasoning_gym import generators, guards

#: Seconds that a generator may take for one row.
ROW_SECONDS = 60
#: One question in so many is held out for evaluation.
HELD_OUT = 4
#: A generator has no more different questions if this many rows in a row repeat earlier ones.
_REPEATS = 500
_PR_SET_PDEATHSIG = 1


def make(name: str, given: list[list[Any]], seed: int, counts: tuple[int, int], length: int) -> dict[str, Any]:
    """Return ``{"training": rows, "held_out": rows}`` as JSON texts, or ``{"error": ...}``.

    These are the generator's first rows with different questions of each kind, as many as ``counts`` says, or fewer if
    there are no more. ``length`` is the number of rows that the generator is made for.
    """
    training: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    try:
        with _time_limit():
            made = generators.instance(name, tuple((option, value) for option, value in given), seed, length)
        for key, row in _distinct(name, made, length):
            rows, count = (held_out, counts[1]) if _is_held_out(name, key) else (training, counts[0])
            if len(rows) < count:
                rows.append(row)
            if (len(training), len(held_out)) == tuple(counts):
                break
        return {
            kind: json.dumps(rows, default=_plain) for kind, rows in (("training", training), ("held_out", held_out))
        }
    except Exception as error:
        return {"error": f"{name}, row {len(training) + len(held_out) + 1}: {str(error) or type(error).__name__}"}


def _is_held_out(name: str, key: str) -> bool:
    """Return whether a question is for evaluation, with any seed and any number of rows."""
    return zlib.crc32(f"{name} {key}".encode()) % HELD_OUT == 0


def _distinct(name: str, made: Any, length: int) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    repeats = 0
    for index in range(length):
        random.seed(made.seed + index)  # a few generators also draw from the global one
        with _time_limit():
            entry = made[index]
        row = {"task": name} | {column: entry[column] for column in ("question", "answer", "metadata")}
        key = " ".join(row["question"].split())
        if key in seen or not _is_gradable(row):
            repeats += 1
            if repeats == _REPEATS:
                return
            continue
        seen.add(key)
        repeats = 0
        yield key, row


def _is_gradable(row: dict[str, Any]) -> bool:
    """Return whether the row's own answer can earn a reward: it is not empty, and no guard rejects it.

    Rows without an answer are gradable by the question. Some integrals have the integral itself as their answer.
    """
    answer = row["answer"]
    return answer is None or bool(answer.strip() and guards.accepts(answer.strip(), row))


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {ROW_SECONDS} s; choose easier options of the generator")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, ROW_SECONDS, 1)  # again every second, if the generator catches the error
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _plain(value: Any) -> Any:
    """Convert what JSON cannot hold: sets, and numbers of NumPy and SymPy."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.item() if hasattr(value, "item") else str(value)


def _end_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, also if that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Answer the request."""
    _end_with_parent()
    request = json.load(sys.stdin)
    jobs = [
        (each["name"], each["options"], request["seed"], each["counts"], request["length"])
        for each in request["generators"]
    ]
    lines = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the library prints
        generators.names()  # imports the library before the workers fork
        workers = min(len(jobs), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, get_context("fork"), _end_with_parent) as pool:
            for made in pool.map(make, *zip(*jobs, strict=True)):
                print(json.dumps(made), file=lines, flush=True)


if __name__ == "__main__":
    main()

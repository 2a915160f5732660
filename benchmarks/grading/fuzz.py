r"""Search for answers that take long to grade or crash the grader.

    python -m benchmarks.grading.fuzz --answers 200000 --data SUITE

Each answer has at most 2,000 characters. Its time is the processor time of the grading thread. Finished chunks are kept
in ``--results``, so the same command continues after an interruption.
"""

import argparse
import json
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.grading import hostile
from benchmarks.grading.suites import accepted, golds_of
from esplug_tasks_math import reward

CHUNK = 500
LIMIT = 0.5  # seconds that one answer may take on one core
HANGS = 20  # seconds of processor time after which grading is interrupted


@dataclass(frozen=True, slots=True)
class Chunk:
    """Outcome of the answers ``first`` to ``first + count``: labels, the slowest, and the crashes."""

    first: int
    count: int
    labels: dict[str, int]
    slowest: list[tuple[float, int]]
    slow: int
    crashes: list[tuple[str, int]]
    megabytes: int


class _Hang(BaseException):
    """Grading took too long."""


def _interrupt(*_: object) -> None:
    raise _Hang


def search(seed: int, first: int, count: int, golds: tuple[str, ...]) -> Chunk:
    """Grade answers ``first`` to ``first + count``."""
    signal.signal(signal.SIGPROF, _interrupt)
    reward(r"\boxed{\sqrt{x}}", r"\sqrt{y}")  # load the parser
    labels: Counter[str] = Counter()
    times, crashes = [], []
    for number in range(first, first + count):
        answer, gold = hostile.answer(seed, number, golds)
        start = time.thread_time()
        signal.setitimer(signal.ITIMER_PROF, HANGS)
        try:
            labels[reward(rf"\boxed{{{answer}}}", gold).label] += 1
        except (_Hang, Exception) as error:
            crashes.append((type(error).__name__, number))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        times.append((time.thread_time() - start, number))
    slow = sum(seconds > LIMIT for seconds, _ in times)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Chunk(first, count, dict(labels), sorted(times, reverse=True)[:3], slow, crashes, memory)


def chunks(options: argparse.Namespace, golds: tuple[str, ...]) -> Iterator[Chunk]:
    """Yield the chunks of earlier runs from the results file, then search the others and append them to it."""
    known = []
    if options.results.exists():
        known = [Chunk(**json.loads(line)) for line in options.results.read_text().splitlines()]
        known = [chunk for chunk in known if chunk.first < options.answers]
    yield from known
    missing = sorted(set(range(0, options.answers, CHUNK)) - {chunk.first for chunk in known})
    with options.results.open("a") as file, ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        pending = [pool.submit(search, options.seed, first, CHUNK, golds) for first in missing]
        for future in as_completed(pending):
            file.write(json.dumps(asdict(future.result())) + "\n")
            file.flush()
            yield future.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=200_000, help="answers to grade [default: 200000]")
    parser.add_argument("--data", type=Path, help="a saved DatasetDict with a column 'answer', to mutate as well")
    parser.add_argument("--processes", type=int, default=2, help="processes that grade [default: 2]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the answers [default: 0]")
    parser.add_argument(
        "--results", type=Path, default=Path("fuzz.jsonl"), help="file of finished chunks, of one seed and data"
    )
    parser.add_argument("--show", type=int, metavar="N", help="print answer N and its expected answer, and stop")
    options = parser.parse_args()
    suite = [text for gold in (golds_of(options.data) if options.data else ()) for text in accepted(gold)]
    golds = (*hostile.GOLDS * (1 + len(suite) // len(hostile.GOLDS)), *suite)  # as many of ours as of the suite's
    if options.show is not None:
        print(*hostile.answer(options.seed, options.show, golds), sep="\n\n")
        return

    start, labels, found = time.perf_counter(), Counter(), []
    for chunk in chunks(options, golds):
        labels.update(chunk.labels)
        found.append(chunk)
        for name, number in chunk.crashes:
            print(f"answer {number}: {name}", flush=True)
        for seconds, number in chunk.slowest[: chunk.slow]:
            print(f"answer {number}: {seconds:.2f} s", flush=True)
    table = Table(
        "answers", "over 0.5 s", "slowest (s)", "crashes", "peak MB", *labels, title="Fuzzed answers, CPU time of each"
    )
    total = sum(chunk.count for chunk in found)
    worst = max(seconds for chunk in found for seconds, _ in chunk.slowest)
    crashes = sum(len(chunk.crashes) for chunk in found)
    figures = (
        total,
        sum(chunk.slow for chunk in found),
        f"{worst:.3f}",
        crashes,
        max(chunk.megabytes for chunk in found),
    )
    table.add_row(*(str(figure) for figure in (*figures, *labels.values())))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s, {options.processes} processes, seed {options.seed}")


if __name__ == "__main__":
    main()

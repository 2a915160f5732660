r"""Seconds and memory of arms of the learning benchmark, each alone on a GPU or a CPU.

    python -m benchmarks.learning.alone --gpu 0
    python -m benchmarks.learning.alone --study arithmetic --arm "3 sigma" --iterations 8

Each arm trains for a few iterations in a process of its own. The table shows the seconds of training, without
evaluations and without what comes before the first of them, which warms up. Memory is the most in use: on a GPU all of
it, as the driver counts, less what was in use before; on a CPU that of the arm's processes. ``results/alone.json`` has
the rows.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.learning.__main__ import run
from benchmarks.learning.studies import STUDIES, check_arms

RESULTS = Path(__file__).parent / "results" / "alone.json"
ARMS = ("alpha x 6", "GRPO, 8 answers a prompt, rate 1e-05", "GRPO, 16 answers a prompt, rate 1e-05")
SHOWN = ("study", "arm", "answers", "seconds for 1,000 answers", "in use, GB", "training, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, default="countdown")
    parser.add_argument("--arm", action="append", help=f"repeat for more  [default: {'; '.join(ARMS)}]")
    parser.add_argument("--iterations", type=int, default=6, help="of the study, which evaluates in them  [default: 6]")
    parser.add_argument("--gpu", default="none", help="index of a GPU, or none  [default: none]")
    own = parser.parse_args()
    check_arms(parser, own.study, own.arm or ARMS)
    needed = 2 * STUDIES[own.study].common["eval_freq"]
    if own.iterations < needed:
        parser.error(f"--iterations {own.iterations}: the first evaluation ends the warm-up; give at least {needed}")
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for arm in own.arm or ARMS:
        found, peak = measured(own.study, arm, own.gpu, own.iterations)
        answers, clock = found["answers"], found["clock"]
        seconds = (clock[-1] - clock[1]) / (answers[-1] - answers[1])
        row = {"study": own.study, "arm": arm, "answers": answers[-1], "seconds for 1,000 answers": 1000 * seconds}
        row |= {"in use, GB": peak / 1e9, "with start and evaluations, s": found["seconds"]}
        row |= {"generating, s": found.get("generating"), "training, s": clock[-1], "clock": clock}
        rows = [each for each in rows if (each["study"], each["arm"]) != (own.study, arm)]
        rows.append(row | {"environment": found["environment"]})
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"| {' | '.join(SHOWN)} |\n{'|---' * len(SHOWN)}|")
    for row in rows:
        print(f"| {' | '.join(row[name] if isinstance(row[name], str) else f'{row[name]:.4g}' for name in SHOWN)} |")


def measured(study: str, arm: str, gpu: str, iterations: int) -> tuple[dict[str, Any], int]:
    """Return the result of an arm, and the most bytes in use while it ran."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_run, args=(results, study, arm, gpu, iterations))
    in_use = _gpu_memory(int(gpu)) if gpu != "none" else lambda: _memory_of(process.pid)
    before, peak = in_use(), 0
    process.start()
    while process.is_alive() and results.empty():
        peak = max(peak, in_use() - before)
        time.sleep(0.05)
    if results.empty() and process.exitcode:
        raise SystemExit(f"{arm}: the run failed")
    found = results.get()
    process.join()
    return found, peak


def _run(results: Any, *what: Any) -> None:
    study, arm, gpu, iterations = what
    results.put(run(study, arm, 1, gpu, iterations))


def _gpu_memory(gpu: int) -> Callable[[], int]:
    import pynvml

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(gpu)
    return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(device).used)


def _memory_of(pid: int | None) -> int:
    """Return the memory of a process and its children that no other process shares; 0 before it has started."""
    total = 0
    if pid is None:
        return total
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += each.memory_full_info().uss
    return total


if __name__ == "__main__":
    main()

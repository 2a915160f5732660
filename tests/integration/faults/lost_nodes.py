"""Faults of nodes, for runs with real engines on a cluster of several Ray nodes."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from tests.helpers.ray_nodes import Nodes
from tests.integration.faults.harness import Desk, Launched, done, reach


@contextmanager
def nodes_of(desk: Desk, engines: int, *, watchful: bool = True) -> Iterator[Nodes]:
    """Start a cluster with a node for each engine, to which started runs connect."""
    environment = {"RAY_AUTH_MODE": "disabled", "CODES_LINGER": "1"}
    before = dict(os.environ)
    os.environ |= environment
    try:
        with Nodes(desk.folder / f"nodes-{time.monotonic_ns()}", watchful=watchful) as nodes:
            for _ in range(engines):
                nodes.add()
            yield nodes
    finally:
        os.environ.clear()
        os.environ |= before


def said(run: Path, what: str) -> list[int]:
    """Return the numbers of the nodes whose engines said that they do something, one for each time."""
    logs = (file.read_text(errors="replace") for file in sorted((run / "logs").glob("engine-*.log")))
    return [int(number) for log in logs for number in re.findall(rf"{what} on 127\.0\.0\.(\d+)", log)]


def kill_nodes(nodes: Nodes, launched: Launched, run: Path, phases: Sequence[str], draw: Random) -> None:
    """Kill one of two nodes in each phase, see that the run goes on, and add another."""
    there = [2, 3]
    for number, phase in enumerate(phases, 1):
        victim = draw.choice(there)
        if phase in ("updating", "saving"):
            before = len(said(run, phase))
            launched.until(lambda: len(said(run, phase)) > before, f"an engine {phase}")  # noqa: B023
            victim = draw.choice(there) if phase == "updating" else _last(run, phase, there)
        else:
            reach(launched, run, phase, draw)
        iterations = done(run)
        nodes.kill(victim)
        launched.until(lambda: done(run) >= iterations + 2, "two iterations without the node")  # noqa: B023
        launched.until(lambda: launched.text.count("its node is gone; going on with 1") == number, "the loss")  # noqa: B023
        there = [*(each for each in there if each != victim), nodes.add()]
        launched.until(lambda: launched.text.count("is there again") == number, "an engine on the new node")  # noqa: B023
    (run / "go").touch()


def _last(run: Path, what: str, there: Sequence[int]) -> int:
    """Return the node of ``there`` whose engine does something: the first engine saves."""
    (saver,) = set(said(run, what)[-1:]) & set(there) or {there[0]}
    return saver


def cut_off(nodes: Nodes, launched: Launched, run: Path) -> float:
    """Stop a node's raylet. Returns the seconds until the run goes on without it."""
    launched.until(lambda: done(run) >= 2, "iteration 2")
    began = time.monotonic()
    nodes.suspend(3)
    launched.until(lambda: "its node is gone; going on with 1" in launched.text, "the loss")
    seconds = time.monotonic() - began
    (run / "go").touch()
    return seconds

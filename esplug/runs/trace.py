"""Trace of one iteration, in the Trace Event Format of https://ui.perfetto.dev and chrome://tracing.

Driver, engines and graders are lanes. Times of engines on other machines come from those machines' clocks.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esplug.engines.messages import Work
from esplug.es.members import Member
from esplug.runs.metrics import PopulationResult

_PROCESSES = ("driver", "engines", "graders")


def trace(
    members: Sequence[Member], result: PopulationResult, began: float, phases: Mapping[str, float]
) -> dict[str, Any]:
    """Return the trace of an iteration that began at ``began`` (Unix seconds) and had these driver phases (seconds)."""
    events = [*_driver(began, phases), *_engines(members, result), *_graders(result)]
    start = min(event["ts"] for event in events)
    for event in events:
        event["ts"] -= start
    lanes = sorted({(event["pid"], event["tid"]) for event in events})
    names = [{"ph": "M", "name": "process_name", "pid": p, "args": {"name": n}} for p, n in enumerate(_PROCESSES)]
    names += [
        {"ph": "M", "name": "thread_name", "pid": p, "tid": lane, "args": {"name": f"{_PROCESSES[p][:6]} {lane}"}}
        for p, lane in lanes
    ]
    return {"traceEvents": names + events, "displayTimeUnit": "ms"}


def _driver(began: float, phases: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    for name, seconds in phases.items():
        yield _event("driver", 0, name, began, seconds)
        began += seconds


def _engines(members: Sequence[Member], result: PopulationResult) -> Iterator[dict[str, Any]]:
    members_of = defaultdict[Work, list[int]](list)
    for position, generation in enumerate(result.generations):
        for work in generation.work:
            members_of[work].append(position)
    for work, positions in members_of.items():
        first, last = members[positions[0]], members[positions[-1]]
        tokens = sum(answer.tokens for position in positions for answer in result.generations[position].completions)
        about: dict[str, Any] = {"tokens of the members": tokens}
        name, number = f"members {first.index} to {last.index}", f"{first.index} to {last.index}"
        if len(positions) == 1:
            about = {"seed": f"{first.seed:016x}", "sign": first.sign, "tokens of the member": tokens}
            name, number = f"member {first.index}", f"{first.index}"
        if work.switch_seconds:
            yield _event("engines", work.engine, f"write weights {number}", work.began, work.switch_seconds)
        yield _event("engines", work.engine, name, work.began + work.switch_seconds, work.generate_seconds, about)


def _graders(result: PopulationResult) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(result.graded):
        for grade in row:
            if grade.grader is not None:
                about = {"reward": grade.reward.value, "label": grade.reward.label}
                yield _event("graders", grade.grader, f"member {index}", grade.began, grade.seconds, about)


def _event(
    process: str, lane: int, name: str, began: float, seconds: float, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    lane_ids = {"pid": _PROCESSES.index(process), "tid": lane}
    return {"ph": "X", "name": name, **lane_ids, "ts": began * 1e6, "dur": seconds * 1e6, "args": about or {}}

"""A trace of one iteration, in the Trace Event Format that https://ui.perfetto.dev and chrome://tracing open.

Engines, graders and driver are lanes. Times of engines on other machines are those of their clocks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from esplug.es import Member
from esplug.metrics import PopulationResult

_PROCESSES = ("driver", "engines", "graders")


def trace(
    members: Sequence[Member], result: PopulationResult, began: float, phases: Mapping[str, float]
) -> dict[str, Any]:
    """Return the trace of an iteration.

    Args:
        members: of the population.
        result: their work and its grading.
        began: when the iteration did, in Unix seconds of the driver.
        phases: what the driver did from then on, one after the other, and for how many seconds.
    """
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
    for member, generation in zip(members, result.generations, strict=True):
        tokens = sum(completion.tokens for completion in generation.completions)
        about = {"seed": f"{member.seed:016x}", "sign": member.sign, "tokens of the member": tokens}
        for work in generation.work:
            switched = work.began + work.switch_seconds
            if work.switch_seconds:
                yield _event("engines", work.engine, f"write weights {member.index}", work.began, work.switch_seconds)
            yield _event("engines", work.engine, f"member {member.index}", switched, work.generate_seconds, about)


def _graders(result: PopulationResult) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(result.graded):
        for grade in row:
            if grade.grader is not None:
                about = {"reward": grade.reward.value, "label": grade.reward.label}
                yield _event("graders", grade.grader, f"member {index}", grade.began, grade.seconds, about)


def _event(
    process: str, lane: int, name: str, began: float, seconds: float, about: dict[str, Any] | None = None
) -> dict[str, Any]:
    place = {"pid": _PROCESSES.index(process), "tid": lane}
    return {"ph": "X", "name": name, **place, "ts": began * 1e6, "dur": seconds * 1e6, "args": about or {}}

"""The trace of an iteration: every piece of work once, in its lane, at its time."""

import json

import numpy as np

from esplug.engines.messages import Completion, Generation, Work
from esplug.es.members import population
from esplug.hookspecs import Reward
from esplug.rewards import Graded
from esplug.runs.metrics import PopulationResult
from esplug.runs.trace import trace


def test_a_trace_holds_every_piece_of_work_in_its_lane() -> None:
    members = population(1, 0, 2, antithetic=True)
    generations = [
        Generation([Completion("x", 5, True)], (Work(0, 100.0, 0.5, 2.0), Work(1, 101.0, 0.25, 1.0))),
        Generation([Completion("y", 7, True)], (Work(1, 102.5, 0.0, 1.5),)),
    ]
    graded = [[Graded(Reward(1.0, "right"), grader=1, began=102.6, seconds=0.1)], [Graded(Reward(0.0), failed=True)]]
    result = PopulationResult(np.array([[1.0], [0.0]]), graded, generations, 4.0, 0.5)
    made = json.loads(json.dumps(trace(members, result, 99.5, {"generate": 4.0, "update": 0.25})))
    events = [event for event in made["traceEvents"] if event["ph"] == "X"]
    processes = {e["pid"]: e["args"]["name"] for e in made["traceEvents"] if e["name"] == "process_name"}
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in made["traceEvents"] if e["name"] == "thread_name"}
    shown = sorted((processes[e["pid"]], e["tid"], e["name"], round(e["ts"]), round(e["dur"])) for e in events)
    assert shown == [
        ("driver", 0, "generate", 0, 4_000_000),
        ("driver", 0, "update", 4_000_000, 250_000),
        ("engines", 0, "member 0", 1_000_000, 2_000_000),
        ("engines", 0, "write weights 0", 500_000, 500_000),
        ("engines", 1, "member 0", 1_750_000, 1_000_000),
        ("engines", 1, "member 1", 3_000_000, 1_500_000),
        ("engines", 1, "write weights 0", 1_500_000, 250_000),
        ("graders", 1, "member 0", 3_100_000, 100_000),
    ]
    assert set(lanes.values()) == {"driver 0", "engine 0", "engine 1", "grader 1"}


def test_a_batch_of_members_is_one_piece_of_work() -> None:
    members = population(1, 0, 3, antithetic=False)
    together = (Work(0, 100.0, 0.5, 2.0, 2),)
    generations = [
        Generation([Completion("x", 5, True)], together),
        Generation([Completion("y", 7, True)], together),
        Generation([Completion("z", 1, True)], (Work(1, 100.0, 0.5, 1.0, 1),)),
    ]
    result = PopulationResult(np.zeros((3, 1)), [[Graded(Reward(0.0))]] * 3, generations, 4.0, 0.5)
    events = trace(members, result, 100.0, {})["traceEvents"]
    shown = sorted((e["tid"], e["name"], round(e["dur"]), e["args"]) for e in events if e["ph"] == "X")
    assert [(lane, name, duration) for lane, name, duration, _ in shown] == [
        (0, "members 0 to 1", 2_000_000),
        (0, "write weights 0 to 1", 500_000),
        (1, "member 2", 1_000_000),
        (1, "write weights 2", 500_000),
    ]
    assert shown[0][3] == {"tokens of the members": 12}

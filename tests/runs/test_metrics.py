"""What an iteration reports."""

import json
import math

import numpy as np
import pytest

from esplug.checkpoints.seed_log_records import Step
from esplug.engines.messages import Completion, Generation, Work
from esplug.engines.usage import EngineUsage, GpuUsage
from esplug.es.members import population
from esplug.es.update import coefficients
from esplug.hookspecs import Reward
from esplug.rewards import Graded
from esplug.runs.metrics import Iteration, PopulationResult, iteration_record, train_metrics, usage_metrics

RIGHT = Graded(Reward(1.0, "right", True, {"format": 1.0, "steps": 4.0}))
WRONG = Graded(Reward(0.2, "wrong", False, {"format": 0.5}))
LATE = Graded(Reward(0.0, "timeout"), failed=True, traceback="no answer within 1 s")
MUTE = Graded(Reward(0.4))


def result(graded: list[list[Graded]], tokens: int = 10) -> PopulationResult:
    """N members who took 1, 2, 3 ... seconds to switch and ten times that to answer."""
    generations = [
        Generation(
            [Completion("x", tokens, finished=b == 0) for b in range(len(row))],
            (Work(n + 1, 0.0, n + 1.0, 10 * (n + 1.0), node="10.0.0.2"), Work(0, 0.0, 0.0, 0.0, node="10.0.0.1")),
        )
        for n, row in enumerate(graded)
    ]
    rewards = np.array([[grade.reward.value for grade in row] for row in graded])
    return PopulationResult(rewards, graded, generations, generate_seconds=5.0, grade_seconds=0.5)


GIB = 2**30


@pytest.mark.parametrize(
    ("engines", "expected"),
    [
        ([], {}),
        ([EngineUsage(3 * GIB, {}), EngineUsage(4 * GIB, {})], {"engine_memory": 7.0}),
        (
            [EngineUsage(GIB, {"a": GpuUsage(60 * GIB, 80.0)}), EngineUsage(GIB, {"b": GpuUsage(70 * GIB, 90.0)})],
            {"engine_memory": 2.0, "gpu_memory": 65.0, "gpu_utilization": 85.0},
        ),
        (  # engines that share a GPU
            [EngineUsage(GIB, {"a": GpuUsage(60 * GIB, 80.0)})] * 3,
            {"engine_memory": 3.0, "gpu_memory": 60.0, "gpu_utilization": 80.0},
        ),
        ([EngineUsage(GIB, {"a": GpuUsage(GIB, None)})], {"engine_memory": 1.0, "gpu_memory": 1.0}),
    ],
)
def test_usage_of_hardware_is_reported_as_far_as_it_is_known(engines, expected) -> None:
    wanted = {"driver_memory": 0.5} | expected
    assert usage_metrics(GIB // 2, engines) == {f"system/{name}": value for name, value in wanted.items()}


def test_rewards_describe_the_members_means() -> None:
    metrics = train_metrics(result([[RIGHT, WRONG], [WRONG, WRONG], [RIGHT, RIGHT]]), 1, antithetic=False)
    means = [0.6, 0.2, 1.0]
    assert metrics["train/reward/mean"] == pytest.approx(0.6)
    assert metrics["train/reward/min"] == pytest.approx(0.2)
    assert metrics["train/reward/max"] == pytest.approx(1.0)
    assert metrics["train/reward/std"] == pytest.approx(np.std(means))


def test_labels_are_shares_of_all_answers() -> None:
    metrics = train_metrics(result([[RIGHT, WRONG], [WRONG, MUTE], [LATE, WRONG]]), 1, antithetic=False)
    labels = {name: value for name, value in metrics.items() if name.startswith("train/labels/")}
    assert labels == {
        "train/labels/right": pytest.approx(1 / 6),
        "train/labels/timeout": pytest.approx(1 / 6),
        "train/labels/wrong": pytest.approx(3 / 6),
    }


@pytest.mark.parametrize(("graded", "failed"), [([[RIGHT], [WRONG]], 0), ([[LATE, RIGHT], [LATE, LATE]], 3)])
def test_failed_rewards_are_counted(graded, failed) -> None:
    assert train_metrics(result(graded), 1, antithetic=False)["train/rewards_failed"] == failed


def test_a_tasks_own_metrics_are_averaged_over_the_answers_that_have_them() -> None:
    metrics = train_metrics(result([[RIGHT, WRONG], [WRONG, LATE]]), 1, antithetic=False)
    assert metrics["train/metrics/format/mean"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert metrics["train/metrics/steps/mean"] == 4.0


def test_engine_times_are_averages_over_the_engines() -> None:
    metrics = train_metrics(result([[RIGHT], [WRONG], [WRONG]]), 2, antithetic=False)
    assert metrics["time/switch"] == pytest.approx((1 + 2 + 3) / 2)
    assert metrics["time/engine_generate"] == pytest.approx((10 + 20 + 30) / 2)
    assert (metrics["time/generate"], metrics["time/grade_wait"]) == (5.0, 0.5)


def test_tokens_and_how_many_answers_ended_by_themselves() -> None:
    metrics = train_metrics(result([[RIGHT, WRONG], [WRONG, MUTE]], tokens=12), 1, antithetic=False)
    assert metrics["train/tokens/mean"] == 12
    assert metrics["train/tokens_per_second"] == pytest.approx(48 / 5)
    assert metrics["train/finished"] == 0.5


def test_the_mirrored_correlation_is_reported_for_pairs_only() -> None:
    mirrored = result([[RIGHT], [WRONG], [WRONG], [RIGHT], [MUTE], [MUTE]])
    expected = np.corrcoef([1.0, 0.2, 0.4], [0.2, 1.0, 0.4])[0, 1]
    assert train_metrics(mirrored, 1, antithetic=True)["train/mirrored_correlation"] == pytest.approx(expected)
    assert "train/mirrored_correlation" not in train_metrics(mirrored, 1, antithetic=False)
    few = train_metrics(result([[RIGHT], [WRONG]]), 1, antithetic=True)
    assert math.isnan(few["train/mirrored_correlation"])


def test_the_record_replays_the_iteration() -> None:
    members = population(2**64 - 1, 3, 4, antithetic=True)
    utilities = np.array([1.5, -0.5, -1.0, 0.0])
    steps = coefficients(0.1, utilities, members)
    graded = [[RIGHT, WRONG], [WRONG, WRONG], [MUTE, LATE], [RIGHT, RIGHT]]
    step = Step(3, tuple(steps), True, 0xAB)
    iteration = Iteration(members, result(graded), utilities, began=0.0, seconds=6.0, update_seconds=0.25)
    record = iteration_record(step, iteration, {"train/reward/mean": 0.5})
    read = json.loads(json.dumps(record))
    assert read["iteration"] == 3
    assert read["checksum"] == "00000000000000ab"
    assert read["metrics"] == {"train/reward/mean": 0.5}
    assert [(m["index"], m["seed"], m["sign"]) for m in read["members"]] == [
        (member.index, member.seed, member.sign) for member in members
    ]
    assert [member["coefficient"] for member in read["members"]] == steps
    assert [member["utility"] for member in read["members"]] == utilities.tolist()
    assert [member["rewards"] for member in read["members"]] == [[1.0, 0.2], [0.2, 0.2], [0.4, 0.0], [1.0, 1.0]]
    assert [member["reward"] for member in read["members"]] == pytest.approx([0.6, 0.2, 0.2, 1.0])
    assert [member["tokens"] for member in read["members"]] == [[10, 10]] * 4
    assert [member["switch_seconds"] for member in read["members"]] == [1.0, 2.0, 3.0, 4.0]
    places = [[(each["engine"], each["node"]) for each in member["engines"]] for member in read["members"]]
    assert places == [[(0, "10.0.0.1"), (n, "10.0.0.2")] for n in range(1, 5)]


@pytest.mark.parametrize(("name", "own"), [("reward", 1.0), ("tokens", 10)])
def test_a_tasks_metrics_cannot_replace_the_runs(name, own) -> None:
    graded = [[Graded(Reward(1.0, metrics={name: 99.0}))], [Graded(Reward(1.0, metrics={name: 99.0}))]]
    assert train_metrics(result(graded), 1, antithetic=False)[f"train/{name}/mean"] == own

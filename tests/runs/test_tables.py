"""What is printed at the end: every figure with its interval, and names as they are."""

import pytest

from esplug.evaluation.figures import Evaluation, SplitEvaluation
from esplug.planning.placement import Plan
from esplug.runs.compare import compare_evaluations
from esplug.runs.result import RunResult
from esplug.runs.tables import print_comparison, print_evaluation, print_summary
from esplug.utils.console import get_console
from tests.helpers.evaluations import sample

PLAN = Plan(2, "cpu", 0, 1)


@pytest.fixture
def printed(monkeypatch, capsys):
    """Return a function that gives the lines printed so far, words joined by single spaces."""
    monkeypatch.setenv("COLUMNS", "200")
    get_console.cache_clear()
    yield lambda: [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    get_console.cache_clear()


def evaluation(*rewards: list[float], names=("s",), pass_k=(1,), iteration=0, by_task=True, **details) -> Evaluation:
    """Make an evaluation whose splits are alike: a row for every list, which passes with 1."""
    splits = []
    for name in names:
        samples = [
            sample(reward, reward == 1, name, index, sample=number, **details)
            for index, row in enumerate(rewards)
            for number, reward in enumerate(row)
        ]
        splits.append(SplitEvaluation(name, samples, pass_k, by_task))
    return Evaluation(iteration, splits, 1.0)


def test_every_figure_has_a_line_with_its_interval(printed) -> None:
    print_evaluation(evaluation([1.0], [0.25], [0.5], [0.25], tokens=300, metrics={"format": 0.5}, label="odd"))
    lines = printed()
    assert "s 4 pass@1 0.250 [0.046, 0.699]" in lines
    assert "tokens 300.0 [300.0, 300.0]" in lines
    assert "format 0.500 [0.500, 0.500]" in lines
    assert "odd 1.000 [0.510, 1.000]" in lines
    assert any(line.startswith("reward 0.500 [0.") for line in lines)
    assert not any("average" in line for line in lines)


def test_a_figure_that_is_pass_at_1_again_is_left_out(printed) -> None:
    print_evaluation(evaluation([1.0], [0.0]))
    assert not any("reward" in line for line in printed())


def test_several_splits_get_their_average(printed) -> None:
    print_evaluation(evaluation([1.0], [0.25], names=("a", "b")))
    lines = printed()
    assert [line.split()[0] for line in lines if "pass@1" in line] == ["a", "b", "average"]
    assert sum("reward" in line for line in lines) == 3


@pytest.mark.parametrize("name", ["[bold]", "rows[a]", "[/red]", ":smile:"])
def test_names_are_printed_as_they_are(name, printed) -> None:
    one = evaluation([1.0], [0.25], [0.5], names=(name,), label=name, metrics={name: 0.75})
    print_evaluation(one)
    print_comparison(compare_evaluations(one, one), ("A", "B"))
    lines = printed()
    assert sum(line.startswith(f"{name} 3 pass@1 ") for line in lines) == 2
    assert f"{name} 0.750 [0.750, 0.750]" in lines
    assert f"{name} 1.000 [0.439, 1.000]" in lines


def test_a_comparison_shows_both_models_and_the_flips(printed) -> None:
    a, b = evaluation([1.0], [0.0], [0.0], [0.0], [0.5]), evaluation([0.0], [1.0], [1.0], [0.0], [0.5])
    print_comparison(compare_evaluations(a, b), ("A", "B"))
    lines = printed()
    assert "s 5 pass@1 A 0.200 [0.036, 0.624]" in lines
    assert "B 0.400 [0.118, 0.769]" in lines
    (change, _) = (line for line in lines if line.startswith("change"))
    assert change.startswith("change +0.200 [-0.")
    assert change.endswith("2 up, 1 down, p 1")


def test_the_same_change_of_another_figure_is_no_reason_to_hide_it(printed) -> None:
    """A model against itself: nothing changes, but pass@2 is not pass@1."""
    same = evaluation([1.0, 0.0, 0.0], [0.0] * 3, [1.0, 1.0, 0.0], pass_k=(1, 2))
    print_comparison(compare_evaluations(same, same), ("A", "B"))
    lines = printed()
    assert any(line.startswith("pass@2 A 0.556 ") for line in lines)
    assert not any("reward" in line for line in lines)  # which is pass@1 in all respects


@pytest.mark.parametrize(
    ("by_task", "rule"), [(True, "the task says it is correct"), (False, "its reward reaches --max-reward")]
)
def test_the_end_of_a_run(by_task, rule, printed, tmp_path) -> None:
    first = evaluation([0.0], [0.25], by_task=by_task)
    last = evaluation([1.0], [0.25], by_task=by_task, iteration=7)
    print_summary(RunResult(tmp_path, [first, last], tmp_path / "model", 0xABC, PLAN, 61.7))
    lines = printed()
    assert any("before 0.000" in line for line in lines)
    assert any("after 7 0.500" in line for line in lines)
    assert any("1 up, 0 down" in line for line in lines)
    assert f"n counts prompts. An answer passes where {rule}." in lines
    assert lines[-4:] == [
        f"run directory {tmp_path}",
        f"model {tmp_path}/model",
        "time 1 min 02 s",
        "details weights checksum 0000000000000abc",
    ]


def test_a_run_without_evaluation_data_says_where_it_lies(printed, tmp_path) -> None:
    print_summary(RunResult(tmp_path, [], None, 1, PLAN, 0.2))
    assert printed() == [f"run directory {tmp_path}", "time 0.2 s", "details weights checksum 0000000000000001"]


REASON = "all members earned the same in every iteration; try a larger model"


@pytest.mark.parametrize("tables", [True, False])
def test_a_run_that_learnt_nothing_ends_by_saying_so(tables, printed, tmp_path) -> None:
    first, last = evaluation([0.0], [0.25]), evaluation([0.0], [0.25], iteration=7)
    result = RunResult(tmp_path, [first, last], tmp_path / "model", 1, PLAN, 2.0, unchanged=REASON)
    print_summary(result, tables=tables)
    lines = printed()
    assert lines[-1] == f"nothing was learnt: weights unchanged, as {REASON}"
    assert f"run directory {tmp_path}" in lines
    assert not any(word in line for line in lines for word in ("before", "after 7", "change "))
    assert any("pass@1" in line for line in lines) == tables


def test_without_tables_one_line_says_where_the_run_is(printed, tmp_path) -> None:
    result = RunResult(tmp_path, [evaluation([0.0])], tmp_path / "model", 1, PLAN, 2.0)
    print_summary(result, tables=False)
    assert printed() == [f"run directory {tmp_path}"]

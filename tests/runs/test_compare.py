"""Comparing two models: their figures side by side, and what is written."""

import json

import pytest

from esplug.config import make_config
from esplug.errors import RunError, UserError
from esplug.evaluation.figures import Evaluation
from esplug.evaluation.statistics import compare
from esplug.planning.placement import Plan
from esplug.runs.compare import compare_evaluations, compare_models
from esplug.runs.directory import RunDirectory
from esplug.runs.result import RunResult
from tests.helpers.evaluations import split

A = [(1.0, True), (0.25, False)], [(0.5, False), (0.5, False)], [(1.0, True), (1.0, True)]
B = [(1.0, True), (0.25, False)], [(0.5, False), (1.0, True)], [(0.0, False), (0.0, False)]


def evaluation(*rows) -> Evaluation:
    return Evaluation(0, [split("s", *rows, pass_k=(1, 2)), split("t", rows[0], pass_k=(1, 2))], 1.0)


def test_figures_are_compared_row_by_row() -> None:
    a, b = evaluation(*A), evaluation(*B)
    one, other = compare_evaluations(a, b)
    assert (one.split, other.split) == ("s", "t")
    assert (one.a, one.b) == (a.splits[0].figures, b.splits[0].figures)
    assert one.changes == {
        "pass@1": compare([0.5, 0.0, 1.0], [0.5, 0.5, 0.0]),
        "pass@2": compare([1.0, 0.0, 1.0], [1.0, 1.0, 0.0]),
        "reward": compare([0.625, 0.5, 1.0], [0.625, 0.75, 0.0]),
    }
    assert [(change.gained, change.lost) for change in one.changes.values()] == [((1,), (2,))] * 3
    assert all(change.gained == change.lost == () for change in other.changes.values())


def run_of(seen: list):
    """Return an evaluation of models that are named by their rewards, which notes configurations."""

    def run(config) -> RunResult:
        seen.append(config)
        directory = RunDirectory.create(config)
        rows = {"a": A, "b": B}[config.model_name.rpartition("/")[2]]
        return RunResult(
            directory.path, [evaluation(*rows)], None, ord(config.model_name[-1]), Plan(3, "cpu", 0, 1), 1.0
        )

    return run


@pytest.fixture
def config(tmp_path):
    return make_config({"output_directory": str(tmp_path / "out"), "task": "sums", "n_iterations": 0, "seed": 7})


def test_two_models_are_evaluated_alike_and_written_side_by_side(config, tmp_path) -> None:
    seen: list = []
    found = compare_models(config, ("some/a", "some/b"), run_of(seen))
    assert found.folder == tmp_path / "out" / "compare-sums-a-b"
    assert {path.name for path in found.folder.iterdir()} == {"A", "B", "comparison.json"}
    assert [run.run_dir for run in found.runs] == [found.folder / "A", found.folder / "B"]
    assert [each.model_name for each in seen] == ["some/a", "some/b"]
    assert [each.n_vllm_engines for each in seen] == [None, 3]  # as many as the first had
    own = {"model_name": "", "output_directory": "", "experiment_name": None, "n_vllm_engines": None}
    assert seen[0].model_copy(update=own) == seen[1].model_copy(update=own) == config.model_copy(update=own)

    record = json.loads((found.folder / "comparison.json").read_text())
    assert record["A"] == {"model": "some/a", "weights_checksum": "0000000000000061"}
    assert record["B"] == {"model": "some/b", "weights_checksum": "0000000000000062"}
    assert list(record["splits"]) == ["s", "t"]
    written, change = record["splits"]["s"], found.splits[0].changes["pass@2"]
    assert written["split"] == "s"
    assert written["a"]["pass@1"]["mean"] == 0.5
    assert written["b"]["reward"]["n"] == 3
    assert written["changes"]["pass@2"]["gained"] == [1]
    assert written["changes"]["pass@2"]["lost"] == [2]
    assert written["changes"]["pass@2"]["difference"]["low"] == change.difference.low


def test_a_comparison_can_be_repeated(config, tmp_path) -> None:
    """Its name is not the user's own, so it gets a number, as that of any run."""
    folders = [compare_models(config, ("a", "b"), run_of([])).folder.name for _ in range(2)]
    assert folders == ["compare-sums-a-b", "compare-sums-a-b-2"]


def test_the_users_own_name_is_used(config, tmp_path) -> None:
    named = config.model_copy(update={"experiment_name": "mine"})
    assert compare_models(named, ("a", "b"), run_of([])).folder == tmp_path / "out" / "mine"


@pytest.mark.parametrize("there", [False, True])
def test_a_mistake_leaves_nothing_behind(there, config, tmp_path) -> None:
    out = tmp_path / "new" / "out"
    if there:
        out.mkdir(parents=True)

    def run(config):
        raise UserError("no such split")

    with pytest.raises(UserError, match="no such split"):
        compare_models(config.model_copy(update={"output_directory": str(out)}), ("a", "b"), run)
    assert [path.name for path in tmp_path.rglob("*")] == (["new", "out"] if there else [])


@pytest.mark.parametrize("error", [UserError, RunError])
def test_what_was_evaluated_stays(error, config, tmp_path) -> None:
    good = run_of([])

    def run(config):
        if config.model_name == "b":
            raise error("the second model fails")
        return good(config)

    with pytest.raises(error):
        compare_models(config, ("a", "b"), run)
    folder = tmp_path / "out" / "compare-sums-a-b"
    assert [path.name for path in folder.iterdir()] == ["A"]
    assert (folder / "A" / "config.toml").exists()

"""`esplug runs`: every run with its state, whatever state that is, and without reading what is large."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from esplug.errors import RunError
from esplug.run_lock import locked
from esplug.run_summary import duration, summarise
from tests.runs import make_run
from tests.test_cli import HEAVY, run_cli


@pytest.fixture
def listed(monkeypatch, capfd, tmp_path):
    """Return a function that lists tmp_path as a program sees it, by name."""

    def get() -> dict:
        code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path), "--json")
        assert code == 0
        return {run["name"]: run for run in json.loads(out)}

    return get


def test_a_line_says_how_a_run_went(monkeypatch, capfd, tmp_path) -> None:
    make_run(tmp_path, "mine")
    code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path))
    head, line = out.splitlines()
    assert code == 0
    assert head.split()[:3] == ["run", "state", "iterations"]
    assert line.split()[:6] == ["mine", "finished", "2/2", "sums", "tiny", "0.250"]
    assert "0.750 [0.301, 0.954] pass@1  24 s" in line  # two iterations of 10 s, two evaluations of 2 s


def test_the_last_changed_comes_first(listed, tmp_path) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        run = make_run(tmp_path, name)
        for file in run.path.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    assert list(listed()) == ["new", "older", "oldest"]
    assert listed()["older"]["changed"] == 1e9 - 1


@pytest.mark.parametrize(
    ("status", "done", "planned", "state"),
    [
        ("finished", 2, 2, "finished"),
        ("failed", 1, 4, "failed"),
        ("interrupted", 1, 4, "interrupted"),
        ("running", 1, 4, "interrupted"),  # killed: nobody holds it any more
        (None, 1, 4, "interrupted"),
        (None, 2, 2, "finished"),
        ("finished", 0, 0, "evaluated"),
    ],
)
def test_the_state_is_told(status, done, planned, state, listed, tmp_path) -> None:
    make_run(tmp_path, status=status, done=done, n_iterations=planned)
    run = listed()["run"]
    assert (run["state"], run["iterations"], run["planned"]) == (state, done, planned)


def test_a_run_that_goes_on_is_running(listed, tmp_path) -> None:
    run = make_run(tmp_path, status="running", done=1, n_iterations=4)
    with ExitStack() as stack:
        stack.enter_context(locked(run.path))
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1, "eval/average/pass@1/mean": 0.')
        assert listed()["run"]["state"] == "running"
    assert listed()["run"]["state"] == "interrupted"


def test_why_a_run_failed_is_kept_but_no_text_that_may_hold_secrets(listed, tmp_path) -> None:
    make_run(tmp_path, "known").write_status("failed", RunError("11 engines died\nthe last of them here"))
    make_run(tmp_path, "unknown").write_status("failed", ValueError("https://me:secret@host"))
    assert listed()["known"]["reason"] == "11 engines died"
    assert listed()["unknown"]["reason"] == "ValueError"


def damage_settings(run) -> None:
    run.config.write_text("task = ")


def damage_log(run) -> None:
    run.seed_log.write_bytes(b"\x00" * 50)


def damage_metrics(run) -> None:
    path = run.path / "metrics.jsonl"
    path.write_bytes(b'\xff\xfe\n{"time/iteration": 1.2.3\n[]\n{"step": "x"}\n' + path.read_bytes())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_settings, {"state": "damaged", "iterations": 2, "planned": None}),
        (damage_log, {"state": "finished", "iterations": 0}),
        (damage_metrics, {"state": "finished", "iterations": 2, "seconds": 24.0}),
    ],
)
def test_a_damaged_run_is_listed_as_far_as_it_goes(damage, expected, listed, tmp_path) -> None:
    damage(make_run(tmp_path))
    run = listed()["run"]
    assert {name: run[name] for name in expected} == expected
    assert run["best"]["mean"] == 0.75


def test_a_torn_last_record_does_not_count(tmp_path) -> None:
    run = make_run(tmp_path, done=5)
    data = run.seed_log.read_bytes()
    run.seed_log.write_bytes(data[:-3])
    assert summarise(run.path).iterations == 4


def test_what_is_no_run_is_left_out_and_comparisons_are_looked_into(listed, tmp_path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "compare-sums").mkdir()
    for place in "AB":
        make_run(tmp_path / "compare-sums", place, done=0)
    assert set(listed()) == {"A", "B"}


def test_listing_imports_nothing_heavy(tmp_path) -> None:
    make_run(tmp_path)
    code = (
        f"import sys; sys.argv = ['esplug', 'runs', {str(tmp_path)!r}]\n"
        "from esplug.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_an_empty_folder_gets_a_helpful_line(monkeypatch, capfd, tmp_path) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path))
    assert (code, len(out.splitlines())) == (0, 1)
    assert "esplug train" in out


def test_a_folder_that_is_not_there_is_one_line(monkeypatch, capfd, tmp_path) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "runs", str(tmp_path / "no"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert str(tmp_path / "no") in err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (280, "4 min 40 s"), (7500, "2 h 05 min")]
)
def test_times_are_written_as_people_say_them(seconds, text) -> None:
    assert duration(seconds) == text

"""`esplug runs`: every run with its state, whatever state that is, and without reading what is large."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from esplug.errors import RunError
from esplug.runs.early_stopping import Stop
from esplug.runs.summary import duration, summarise
from esplug.utils.file_lock import locked
from tests.helpers.cli import HEAVY, run_cli
from tests.helpers.runs import CHECKSUM, make_run


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


@pytest.mark.parametrize(("base", "done", "unchanged"), [(1, 2, False), (CHECKSUM, 2, True), (CHECKSUM, 0, False)])
def test_a_run_that_learnt_nothing_is_marked(base, done, unchanged, listed, monkeypatch, capfd, tmp_path) -> None:
    make_run(tmp_path, "mine", base=base, done=done)
    assert bool(listed()["mine"]["unchanged"]) == unchanged
    _, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path))
    assert ("finished, nothing learnt" in out) == unchanged


def test_notes_and_tags_are_listed_and_tags_select(monkeypatch, capfd, tmp_path) -> None:
    make_run(tmp_path, "one", tags=["cpu", "base"], notes="First try\x1b[31m\nof many.")
    make_run(tmp_path, "two", tags=["cpu"])
    make_run(tmp_path, "three")

    def names(*flags: str) -> set[str]:
        code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path), *flags)
        assert code == 0
        return {line.split()[0] for line in out.splitlines()[1:]}

    assert names() == {"one", "two", "three"}
    assert names("--tag", "cpu") == {"one", "two"}
    assert names("--tag", "cpu", "--tag", "base") == {"one"}
    code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path), "--tag", "base")
    head, line = out.splitlines()
    assert head.split()[-2:] == ["tags", "notes"]
    assert line.endswith("cpu, base  First try␛[31m of many.")
    code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path), "--tag", "gpu")
    assert (code, out) == (0, f"no runs in {tmp_path} have the tag gpu\n")
    code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path), "--tag", "base", "--json")
    assert [(run["tags"], run["notes"]) for run in json.loads(out)] == [
        (["cpu", "base"], "First try\x1b[31m\nof many.")
    ]


@pytest.mark.parametrize("settings", ["tags = 3\nnotes = [1]", 'tags = [1, "\\u0007"]'])
def test_tags_that_were_edited_into_something_else_are_no_obstacle(settings, listed, monkeypatch, tmp_path) -> None:
    make_run(tmp_path).config.write_text(settings)
    assert listed()["run"]["state"] == "finished"


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


def test_a_run_that_is_resumed_is_running_though_its_last_word_stands(listed, tmp_path) -> None:
    run = make_run(tmp_path, status="interrupted", done=1, n_iterations=4)
    with locked(run.path):
        assert listed()["run"]["state"] == "running"
    assert listed()["run"]["state"] == "interrupted"


@pytest.mark.parametrize(("status", "state"), [("finished", "finished"), ("running", "running")])
def test_where_locks_cannot_be_asked_the_last_word_counts(status, state, listed, monkeypatch, tmp_path) -> None:
    run = make_run(tmp_path, status=status)
    with locked(run.path):
        pass

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert listed()["run"]["state"] == state


def test_why_a_run_stopped_early_is_listed_and_reported(listed, monkeypatch, capfd, tmp_path) -> None:
    run = make_run(tmp_path, "early", done=2, n_iterations=9)
    run.write_status("stopped", stop=Stop("the score is good enough"))
    assert (listed()["early"]["state"], listed()["early"]["reason"]) == ("stopped", "the score is good enough")
    _, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path))
    header, row = out.splitlines()
    assert header.split()[-1] == "reason"
    assert row.endswith("the score is good enough")
    assert "stopped  2/9" in row
    page = tmp_path / "page.html"
    assert run_cli(monkeypatch, capfd, "report", str(run.path), "--output", str(page))[0] == 0
    assert "stopped: the score is good enough" in page.read_text()


def test_why_a_run_failed_is_kept_but_no_text_that_may_hold_secrets(listed, tmp_path) -> None:
    make_run(tmp_path, "known").write_status("failed", RunError("11 engines died\nthe last of them here"))
    make_run(tmp_path, "unknown").write_status("failed", ValueError("https://me:secret@host"))
    assert listed()["known"]["reason"] == "11 engines died"
    assert listed()["unknown"]["reason"] == "ValueError"


#: A whole number that no float can hold.
HUGE = b"9" * 400


def damage_settings(run) -> None:
    run.config.write_text("task = ")


def damage_log(run) -> None:
    run.seed_log.write_bytes(b"\x00" * 50)


def damage_metrics(run) -> None:
    path = run.path / "metrics.jsonl"
    bad = [b"\xff\xfe", b'{"time/iteration": 1.2.3', b"[]", b'{"step": "x"}', b'{"step": %s}' % HUGE]
    bad += [b'{"step": 1, "time/iteration": 1e999}', b'{"step": 1, "eval/average/pass@1/mean": %s}' % HUGE]
    path.write_bytes(b"\n".join([*bad, path.read_bytes()]))


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


def test_a_folder_that_cannot_be_entered_costs_nothing_but_itself(listed, monkeypatch, tmp_path) -> None:
    make_run(tmp_path / "compare-sums", "A")
    theirs = make_run(tmp_path / "compare-sums", "B").path
    make_run(tmp_path, "mine")
    is_file = Path.is_file

    def refuse(path: Path) -> bool:  # root, who may be testing, can enter everything
        if path.parent == theirs:
            raise PermissionError(errno.EACCES, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert set(listed()) == {"A", "mine"}


def test_hidden_folders_are_passed_over(listed, tmp_path) -> None:
    make_run(tmp_path / ".dry-run-x1", "probe")
    make_run(tmp_path, "mine")
    assert set(listed()) == {"mine"}


def test_names_cannot_command_a_terminal(monkeypatch, capfd, tmp_path) -> None:
    odd = tmp_path / os.fsdecode(b"red\x1b[31m\xff")
    make_run(tmp_path).path.rename(odd)
    (odd / "config.toml").write_text('task = "\\u001b]0;x\\u0007"\nmodel_name = "m\\u202e"\nn_iterations = 2\n')
    code, out, _ = run_cli(monkeypatch, capfd, "runs", str(tmp_path))
    assert code == 0
    assert out.splitlines()[1].split()[:5] == ["red␛[31m\\udcff", "finished", "2/2", "␛]0;x␇", "m\\u202e"]
    assert run_cli(monkeypatch, capfd, "report", str(odd))[:2] == (0, f"{tmp_path}/red␛[31m\\udcff/report.html\n")
    assert (odd / "report.html").exists()
    odd.rename(tmp_path / "kept")
    (tmp_path / "\x1b").mkdir()
    assert "\x1b" not in run_cli(monkeypatch, capfd, "runs", str(tmp_path / "\x1b"))[1]


def test_listing_imports_nothing_heavy(tmp_path) -> None:
    make_run(tmp_path)
    code = (
        f"import sys; sys.argv = ['esplug', 'runs', {str(tmp_path)!r}]\n"
        "from esplug.cli.app import main\n"
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
    ("seconds", "text"),
    [(0.4, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (280, "4 min 40 s"), (7500, "2 h 05 min")],
)
def test_times_are_written_as_people_say_them(seconds, text) -> None:
    assert duration(seconds) == text

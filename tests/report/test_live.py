"""`esplug report --watch`: the page follows runs under way, and stays as its reader left it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from esplug.report.live import LiveReport, LiveServer
from esplug.report.run_data import read_runs
from esplug.runs.directory import RunDirectory
from esplug.utils.file_lock import locked
from tests.helpers.browser import Tab, needs_browser
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.runs import evaluation, make_run, metrics, sample
from tests.helpers.servers import in_a_thread

HOSTILE = "</pre><img src=x onerror='hacked = 1'><script>hacked = 1</script>"


def iterate(run: RunDirectory, iteration: int, **answers: Any) -> None:
    """Write what a run writes in an iteration."""
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": iteration, **metrics(iteration)}) + "\n")
    samples = [
        sample(i, reward, "training", output=f"{kind} answer {iteration} {i} {HOSTILE}", **answers).row()
        for i in range(4)
        for kind, reward in (("best", 1.0), ("worst", 0.25))
    ]
    run.write_iteration(iteration, {"iteration": iteration, "metrics": metrics(iteration), "samples": samples})


def new_run(folder: Path, name: str = "run") -> RunDirectory:
    """Make a run that has written only its settings."""
    return make_run(folder, name, done=0, evaluations=[], n_iterations=9, status="running")


def served(*paths: Path) -> AbstractContextManager[LiveServer]:
    return in_a_thread(LiveServer(LiveReport(paths), 0))


def get(server: LiveServer, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.headers)


def moment(server: LiveServer) -> dict[str, str]:
    return json.loads(get(server, "/version")[1])


@needs_browser
def test_the_page_follows_the_run_and_stays_as_the_reader_left_it(tmp_path) -> None:
    run, lock = new_run(tmp_path), ExitStack()
    lock.enter_context(locked(run.path))
    with served(run.path) as server, Tab(server.url, tmp_path / "profile") as tab:
        tab.wait("document.getElementById('live')?.textContent.startsWith('live · updated')")
        assert tab.value("document.querySelector('h1').textContent") == "run"
        assert tab.value("document.querySelectorAll('.plot').length") == 0
        for iteration in range(3):
            iterate(run, iteration)
        tab.wait("document.body.innerText.includes('best answer 2 3') && document.querySelector('.plot > svg')")
        assert HOSTILE in tab.value("document.querySelector('#run-answers pre:not(details pre)').textContent")
        assert "reward 0.25" in tab.value("document.getElementById('run-answers').innerText")
        tab.value("""(() => {
            never = document.querySelector('h1');
            document.querySelector('#figure-run-labels button').click();
            const slider = document.getElementById('smoothing');
            slider.value = 0.5;
            slider.dispatchEvent(new Event('input'));
            document.querySelector('#run-answers details').open = true;
            getSelection().selectAllChildren(document.querySelector('#run-settings th'));
            document.getElementById('run-settings').scrollIntoView();
        })()""")
        seen = """[
            document.querySelector('h1') === never,
            document.querySelector('#figure-run-labels button').getAttribute('aria-pressed'),
            document.getElementById('smoothing').value,
            document.getElementById('weight').textContent,
            document.querySelector('#run-answers details').open,
            getSelection().toString(),
            Math.round(document.getElementById('run-settings').getBoundingClientRect().top),
            visualViewport.scale,
        ]"""
        before = tab.value(seen)
        assert before[:5] == [True, "false", "0.5", "0.5", True]
        points = "JSON.parse(document.getElementById('run-reward').textContent).lines[0].x.length"
        drawn = tab.value("document.querySelector('#figure-run-reward svg').outerHTML")
        iterate(run, 3)
        first = evaluation(0, [sample(i, float(i == 0), output=f"evaluated {i} {HOSTILE}") for i in range(4)])
        run.write_evaluation("held_out", 0, first.splits[0].record(0))
        with (run.path / "metrics.jsonl").open("a") as file:  # and a line in writing
            file.write(json.dumps({"step": 0, **first.metrics()}) + '\n{"step": 4, "train/rew')
        run.write_iteration(4, {})
        (run.iterations / "iteration5.json").write_text('{"iteration": 5, "samp')
        tab.wait("document.body.innerText.includes('best answer 3 3')")
        tab.wait("document.body.innerText.includes('evaluated 0')")
        assert tab.value(points) == 4
        assert tab.value("document.querySelector('#figure-run-reward svg').outerHTML") != drawn
        assert tab.value(seen) == before
        order = tab.value("[...document.querySelectorAll('figure')].map((each) => each.id)")
        assert order[:2] == ["figure-run-evaluation", "figure-run-reward"]

        run.write_status("finished")
        lock.close()
        tab.wait("document.getElementById('live').textContent.startsWith('ended: finished')")
        assert tab.value("document.querySelector('.state').textContent") == "finished"
        assert tab.value("typeof hacked") == "undefined"
        assert tab.messages == []
        server.shutdown()
        server.server_close()
        tab.wait("document.getElementById('live').textContent.includes('--watch has stopped')")


@needs_browser
def test_a_policy_keeps_injected_scripts_from_running(tmp_path) -> None:
    """The page above would stay silent even if text became markup, so show that markup would be noticed."""
    with served(new_run(tmp_path).path) as server, Tab(server.url, tmp_path / "profile") as tab:
        tab.wait("document.getElementById('live')")
        tab.value("document.querySelector('main').insertAdjacentHTML('beforeend', `<img src=x onerror='hacked = 1'>`)")
        time.sleep(0.5)
        assert tab.value("typeof hacked") == "undefined"
        assert "Content Security Policy" in "".join(tab.messages)


def test_several_runs_are_compared_while_some_run(tmp_path) -> None:
    one, two = new_run(tmp_path, "one"), make_run(tmp_path, "two")
    with served(one.path, two.path) as server, locked(one.path):
        before = moment(server)
        assert before["status"] == "live: 1 of 2 runs"
        iterate(one, 0)
        assert moment(server)["version"] != before["version"]
        page = get(server, "/")[1]
        assert "2 runs compared" in page
        assert "best answer 0 3 &lt;/pre&gt;" in page
        assert f'data-version="{moment(server)["version"]}"' in page


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda run: run.write_status("finished"), "ended: finished"),
        (lambda run: run.write_status("failed"), "ended: failed"),
        (lambda run: None, "ended: interrupted"),  # kill -9
    ],
)
def test_it_says_how_a_run_ended(end: Callable[[RunDirectory], None], status: str, tmp_path) -> None:
    run = new_run(tmp_path)
    with served(run.path) as server:
        with locked(run.path):
            running = moment(server)
            assert running["status"] == "live"
            end(run)
        assert moment(server)["status"] == status
        assert moment(server)["version"] != running["version"]


def test_nothing_is_read_again_until_something_changes(monkeypatch, tmp_path) -> None:
    run = make_run(tmp_path)
    read = []
    monkeypatch.setattr("esplug.report.live.read_runs", lambda paths: read.append(paths) or read_runs(paths))
    with served(run.path) as server:
        assert get(server, "/")[1] == get(server, "/")[1]
        assert len(read) == 1
        iterate(run, 2)
        get(server, "/")
        assert len(read) == 2


def test_a_run_that_cannot_be_read_does_not_end_the_server(monkeypatch, tmp_path) -> None:
    run = make_run(tmp_path)
    with served(run.path) as server:
        with monkeypatch.context() as patch:
            patch.setattr("esplug.report.live.render", lambda *_, **__: 1 / 0)
            assert get(server, "/")[:2] == (500, "ZeroDivisionError: division by zero\n")
        assert get(server, "/")[0] == 200
        for file in sorted(run.path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        assert get(server, "/")[0] == 200
        run.path.rmdir()
        assert get(server, "/")[0] == 200
        assert "damaged" in moment(server)["status"]


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "localhost:99", 200),  # forwarded by ssh
        ("/", "localhost", 200),  # on port 80
        ("/", "evil.example:localhost", 403),
        ("/", "evil.example:80", 403),
        ("/", "evil.example", 403),
        ("/", "127.0.0.1.evil.example:80", 403),
        ("/version", "evil.example:80", 403),
        ("/../config.toml", "localhost:1", 404),
        ("/config.toml", "localhost:1", 404),
    ],
)
def test_only_this_machine_reads_the_page_and_nothing_else(path, host, status, tmp_path) -> None:
    with served(make_run(tmp_path).path) as server:
        assert server.server_address[0] == "127.0.0.1"
        found, _, headers = get(server, path, Host=host)
        assert found == status
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers


def test_the_command_prints_the_address_and_ctrl_c_ends_it(tmp_path) -> None:
    run = new_run(tmp_path)
    command = [sys.executable, "-m", "esplug", "report", "--watch", "--port", "0", str(run.path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    line = process.stdout.readline()
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ shows (.+); Ctrl-C ends it\n", line)
    assert found, line
    assert found[2] == str(run.path)
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
    connection.request("GET", "/")
    assert b'id="live"' in connection.getresponse().read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    assert not (run.path / "report.html").exists()


MISTAKES = [
    (["mien", "--watch"], ["no such directory", "did you mean", "mine"]),
    ([".", "--watch"], ["not a run's directory"]),
    (["mine", "--port", "1"], ["--port is for --watch"]),
    (["mine", "--watch", "--port", "70000"], ["--port 70000", "65535"]),
    (["mine", "--watch", "--port", "-1"], ["--port -1", "65535"]),
    (["mine", "--watch", "--port", "{used}"], ["--port {used}", "in use", "0 for any free one"]),
    (["mine", "--watch", "--png"], ["--png", "--watch"]),
    (["mine", "--watch", "--output", "x.html"], ["--output", "--watch"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_mistakes_are_one_line(arguments, words, monkeypatch, capfd, tmp_path) -> None:
    make_run(tmp_path, "mine")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = other.getsockname()[1]
        arguments, words = ([each.format(used=used) for each in part] for part in (arguments, words))
        code, out, err = run_cli(monkeypatch, capfd, "report", *arguments)
    assert (code, out, len(err.splitlines()), len(errors_of(err))) == (2, "", 1, 1), err
    assert [word for word in words if word not in err] == []

"""`esplug report` in a browser: the page is drawn, fits, reacts and fetches nothing; PNG files."""

import json
import re
import subprocess
import sys
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import BROWSER, OPTIONS, needs_browser
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.report_pages import HOSTILE
from tests.helpers.runs import evaluation, make_run, metrics, sample


def test_png_without_kaleido_is_a_one_line_error_and_the_page_is_written(monkeypatch, capfd, tmp_path) -> None:
    run = make_run(tmp_path)
    monkeypatch.setitem(sys.modules, "kaleido", None)
    code, out, err = run_cli(monkeypatch, capfd, "report", str(run.path), "--png")
    assert (code, len(err.splitlines())) == (2, 1)
    assert 'pip install "esplug[png]"' in err
    assert out == f"{run.path / 'report.html'}\n"
    assert (run.path / "report.html").exists()


def test_png_without_a_browser_is_a_one_line_error_and_the_page_is_written(monkeypatch, capfd, tmp_path) -> None:
    pytest.importorskip("kaleido", reason='no kaleido: pip install "esplug[png]"')
    run = make_run(tmp_path)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    code, out, err = run_cli(monkeypatch, capfd, "report", str(run.path), "--png")
    assert (code, out, len(errors_of(err))) == (2, f"{run.path / 'report.html'}\n", 1)
    assert "apt install chromium" in err
    assert "Traceback" not in err


def browse(page: Path) -> tuple[str, str, list[str]]:
    """Open a page and write a screenshot beside it. Return its DOM, its console messages and the URLs it fetched."""
    log = page.with_suffix(".net.json")
    options = [
        *OPTIONS,
        f"--user-data-dir={page.parent / 'profile'}",
        "--window-size=1280,1600",
        "--virtual-time-budget=5000",
    ]
    options += [f"--log-net-log={log}", "--enable-logging=stderr", f"--screenshot={page.with_suffix('.png')}"]
    done = subprocess.run([BROWSER, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    messages = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    # Requests of the browser itself have no initiator.
    fetched = re.findall(r'"initiator":"null".*?"url":"(https?:[^"]+)"', log.read_text(encoding="utf-8"))
    return done.stdout, messages, fetched


@needs_browser
def test_a_browser_draws_the_page_without_messages_or_network(report, tmp_path) -> None:
    from PIL import Image

    hostile = [evaluation(k, [sample(i, float(i != k), output=HOSTILE[i]) for i in range(4)]) for k in (0, 2)]
    page = report(make_run(tmp_path, evaluations=hostile).path, make_run(tmp_path, "other", antithetic=True).path)
    elements, messages, fetched = browse(tmp_path / "page.html")
    assert (messages, fetched) == ("", []), "an error, or a violation of the page's policy"
    assert elements.count('viewBox="0 0 ') >= len(page.figures) > 10
    colours = Image.open(tmp_path / "page.png").convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 100
    other = tmp_path / "other.html"
    other.write_text("<img src=http://esplug.invalid/x><script>undefined.x</script>")
    _, messages, fetched = browse(other)
    assert "TypeError" in messages, "this test would not notice errors"
    assert fetched == ["http://esplug.invalid/x"]


def look(page: Path, width: int, script: str) -> Any:
    """Open a page in a frame of a width, without its policy, and return the value of a JavaScript expression there."""
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    probe = f"<script>setTimeout(() => {{ parent.document.title = JSON.stringify({script}) }}, 500)</script></body>"
    frame = escape(text.replace("</body>", probe))
    outer = page.with_name("outer.html")
    outer.write_text(f'<iframe width={width} height=900 frameborder=0 srcdoc="{frame}"></iframe>', encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(outer)[0])
    assert title
    return json.loads(unescape(title[1]))


@needs_browser
@pytest.mark.parametrize("width", [320, 400, 1280])
def test_the_page_fits_every_width(width, report, tmp_path) -> None:
    name = "a_long_name_without_a_blank_" * 6
    long = {"task": name, "model_name": name, "notes": name, "tags": [name[:64]], "task_options": {name: name}}
    runs = [make_run(tmp_path, f"{k}{name}", **long).path for k in "ab"]
    for run in runs:
        with (run / "metrics.jsonl").open("a") as file:
            named = {f"train/labels/{name}": 0.5, f"train/metrics/{name}/mean": 1e300, "train/tokens/mean": -1e-300}
            file.write(json.dumps({"step": 2, **metrics(2, **named)}) + "\n")
    for paths in (runs[:1], runs):
        page = report(*paths)
        found = look(
            tmp_path / "page.html",
            width,
            "[innerWidth, document.documentElement.scrollWidth, document.querySelectorAll('.plot > svg').length]",
        )
        assert found[0] == width >= found[1]
        assert found[2] == len(page.figures)


@needs_browser
@pytest.mark.parametrize(("evaluations", "intervals", "lines"), [(1, 1, 0), (2, 2, 0), (3, 0, 1)])
def test_only_three_evaluations_or_more_make_a_curve(evaluations, intervals, lines, report, tmp_path) -> None:
    made = [evaluation(k, [sample(i, float(i < k)) for i in range(4)]) for k in range(evaluations)]
    report(make_run(tmp_path, done=4, evaluations=made).path)
    drawn = "['.interval', '.line:not(.interval)', 'circle'].map((kind) => document.querySelector(" + (
        "'[data-figure=run-evaluation]').querySelectorAll('svg ' + kind).length)"
    )
    assert look(tmp_path / "page.html", 800, drawn) == [intervals, lines, evaluations]


ACT = """(() => {
    const plot = document.querySelector('[data-figure=run-length]');
    const key = (name) => plot.dispatchEvent(new KeyboardEvent('keydown', { key: name }));
    key('ArrowRight'), key('ArrowRight');
    const tip = plot.querySelector('.tip').textContent;
    const button = plot.parentElement.querySelector('button');
    button.click();
    const slider = document.getElementById('smoothing');
    const before = document.querySelectorAll('.smoothed').length;
    slider.value = 0;
    slider.dispatchEvent(new Event('input'));
    return [tip, button.getAttribute('aria-pressed'), plot.querySelectorAll('.raw, .line').length,
            before, document.querySelectorAll('.smoothed').length];
})()"""


@needs_browser
def test_keys_show_values_the_legend_hides_lines_and_the_slider_smooths(monkeypatch, capfd, tmp_path) -> None:
    run = make_run(tmp_path, evaluations=[])
    with (run.path / "metrics.jsonl").open("a") as file:
        for step, tokens in enumerate((10.0, 30.0, 20.0)):
            values = metrics(step, **{"train/tokens/mean": tokens, "train/metrics/x/mean": 1.0})
            file.write(json.dumps({"step": step, **values}) + "\n")
    made = [evaluation(k, [sample(0, 1.0, tokens=7)]) for k in (0, 1, 3)]
    for each in made:
        with (run.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": each.iteration, **each.metrics()}) + "\n")
    page = tmp_path / "page.html"
    assert run_cli(monkeypatch, capfd, "report", str(run.path), "--output", str(page), "--smooth", "0.5")[0] == 0
    tip, pressed, drawn, smooth, none = look(page, 800, ACT)
    assert tip == "iteration 1training 30, smoothed 23.33evaluation 7 [7, 7]"
    assert (pressed, drawn) == ("false", 1), "the evaluation's line is left"
    assert smooth > 4
    assert none == 0


@needs_browser
def test_png_files_have_the_size_for_papers(monkeypatch, capfd, tmp_path) -> None:
    pytest.importorskip("kaleido", reason='no kaleido: pip install "esplug[png]"')
    from PIL import Image

    run = make_run(tmp_path, evaluations=[])
    code, out, _ = run_cli(monkeypatch, capfd, "report", str(run.path), "--png")
    pictures = out.splitlines()[1:]
    assert code == 0
    assert str(run.path / "report-reward.png") in pictures
    assert {Image.open(picture).size for picture in pictures} == {(1920, 1200)}

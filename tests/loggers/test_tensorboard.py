"""Logger ``tensorboard``, read back as TensorBoard reads and shows it."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.config import RunConfig, make_config
from esplug.loggers.tensorboard import TensorboardLogger, escape

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

SAMPLE = {"split": "easy", "index": 0, "sample": 0, "target": "4", "reward": 0.5, "label": "format"}
HOSTILE = "a | b\n\n# <script>alert(1)</script> `x` *y* _z_ [l](javascript:x) ![i](x) &amp; \\| <b>4</b>\n---\n```"


def write(run_dir: Path, config: RunConfig, first: int, last: int, value: float) -> None:
    logger = TensorboardLogger()
    logger.start(config, run_dir, first)
    for step in range(first, last + 1):
        if config.evaluates_at(step):
            logger.samples(step, [SAMPLE | {"prompt": "p", "output": HOSTILE}] * 3)
            logger.samples(step, [SAMPLE | {"split": "hard", "prompt": ["p"], "output": "x"}])
            logger.log(step, {"eval/average/reward/mean": value})
        if step < last:
            logger.log(step, {"train/reward/mean": value + step})
    logger.finish()


def read(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run_dir / "tensorboard")).Reload()


def scalars(events: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def text(events: Any, name: str, position: int = -1) -> str:
    (value,) = events.Tensors(f"{name}/text_summary")[position].tensor_proto.string_val
    return str(value.decode())


def test_metrics_settings_and_samples_come_back(tmp_path: Path) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    config = make_config({"n_iterations": 2, "eval_freq": 0, "stop": ["</answer>\n#"]})
    write(tmp_path, config, 0, 2, 0.25)
    events = read(tmp_path)
    assert scalars(events, "train/reward/mean") == [(0, 0.25), (1, 1.25)]
    assert scalars(events, "eval/average/reward/mean") == [(0, 0.25), (2, 0.25)]
    assert "<pre><code>" in (shown := markdown_to_safe_html(text(events, "config")))
    assert unescape(shown.split("<code>")[1].split("</code>")[0]).strip() == config.to_toml().strip()
    assert [event.step for event in events.Tensors("samples/easy/text_summary")] == [0, 2]
    table = markdown_to_safe_html(text(events, "samples/easy"))
    assert re.findall("<th>(.*)</th>", table) == ["prompt", "target", "answer", "reward", "label"]
    cells = re.findall("<td>(.*)</td>", table)
    assert len(cells) == 15
    assert cells[:2] + cells[3:5] == ["p", "4", "0&#46;5", "format"]
    assert unescape(cells[2].replace("<br>", "\n")) == HOSTILE
    assert "&#91;&#34;p&#34;&#93;" in text(events, "samples/hard")


@settings(deadline=None, max_examples=30)
@given(st.text())
def test_text_is_not_rendered_as_markup(written: str) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    shown = markdown_to_safe_html(f"| a | b |\n| --- | --- |\n| {escape(written)} | end |")
    assert set(re.findall("</?([a-z]+)", shown)) <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert shown.count("<td>") == 2
    assert "<td>end</td>" in shown


@pytest.mark.parametrize("eval_freq", [2, 0])
def test_a_resumed_run_replaces_what_it_logs_again(tmp_path: Path, eval_freq: int) -> None:
    """A run of four iterations is killed in the last one and resumed, and then extended by two."""
    config = make_config({"n_iterations": 4, "eval_freq": eval_freq})
    write(tmp_path, make_config({"n_iterations": 9, "eval_freq": eval_freq}), 0, 4, 0.0)
    write(tmp_path, config, 2, 4, 100.0)
    write(tmp_path, make_config({"n_iterations": 6, "eval_freq": eval_freq}), 4, 6, 200.0)
    events = read(tmp_path)
    assert scalars(events, "train/reward/mean")[:2] == [(0, 0.0), (1, 1.0)]
    assert scalars(events, "train/reward/mean")[-3:] == [(3, 103.0), (4, 204.0), (5, 205.0)]
    evaluated = [(0, 0.0), (2, 100.0), (4, 200.0), (6, 200.0)] if eval_freq else [(0, 0.0), (4, 100.0), (6, 200.0)]
    assert scalars(events, "eval/average/reward/mean") == evaluated
    assert len(events.Tensors("config/text_summary")) == 1

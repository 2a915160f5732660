"""Logger ``console``: what it prints, with control characters escaped."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from esplug.loggers.logger_set import LoggerSet
from tests.loggers.test_logger_set import CONFIG, METRICS


def console(capsys: pytest.CaptureFixture[str], step: int, metrics: Mapping[str, float]) -> list[str]:
    LoggerSet(["console"]).log(step, metrics)  # not started: silent
    loggers = LoggerSet(["console"])
    loggers.start(CONFIG, Path())
    assert capsys.readouterr().out.strip() == CONFIG.to_toml().strip()
    loggers.log(step, metrics)
    return capsys.readouterr().out.splitlines()


def test_console_prints_a_line_per_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    assert console(capsys, 12, METRICS) == [
        "iteration 12  reward mean 0.3125 min -1.0000 max 1.0000 std 0.2500  1,114 tokens/s  58.1 s"
    ]
    assert console(capsys, 0, {"train/reward/mean": 1.0}) == ["iteration 0  reward mean 1.0000"]
    assert console(capsys, 0, {"time/setup": 1.0}) == []


def test_console_prints_a_line_per_split(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 120
    easy = {
        "eval/easy/pass@1/mean": 0.5,
        "eval/easy/pass@1/ci95_low": 0.4,
        "eval/easy/pass@1/ci95_high": 0.6,
        "eval/easy/reward/mean": 0.25,
        "eval/easy/labels/correct": 0.5,
    }
    hard, average = {f"eval/[b]/{long}/pass@1/mean": 0.125}, {"eval/average/pass@1/mean": 0.3125}
    easy_line = "evaluation 5  easy  pass@1 0.5000 [0.4000, 0.6000]  reward 0.2500"
    assert console(capsys, 5, easy | hard | average) == [
        easy_line,
        f"evaluation 5  [b]/{long}  pass@1 0.1250",
        "evaluation 5  average  pass@1 0.3125",
    ]
    assert console(capsys, 5, easy | average) == [easy_line]
    assert console(capsys, 5, {"eval/\x1b[2J/reward/mean": 0.5}) == ["evaluation 5  ␛[2J  reward 0.5000"]


def test_console_prints_a_few_escaped_answers(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"split": "easy", "sample": 0, "target": "4", "reward": 0.5, "label": "format"}
    rows = [
        row | {"index": index, "sample": sample, "prompt": f"[b]{index}", "output": f"{sample}\n\x1b[2J{'x' * 900}"}
        for index in range(40)
        for sample in range(2)
    ]
    rows[2] |= {"prompt": [{"role": "user", "content": "hi"}], "label": ""}
    rows.append(row | {"split": "\x1b]0;", "label": "\x1b[8m\x9b", "index": 0, "prompt": "\x1b", "output": ""})
    loggers = LoggerSet(["console"])
    loggers.start(CONFIG, Path())
    capsys.readouterr()
    loggers.samples(5, rows)
    first, second, third = capsys.readouterr().out.splitlines()
    assert third == r"evaluation 5  ␛]0;  reward 0.5000 ␛[8m\x9b  '\x1b' -> ''"
    assert first.startswith("evaluation 5  easy  reward 0.5000 format  '[b]0' -> '0 \\x1b[2Jxxx")
    assert """easy  reward 0.5000  '[{"role": "user", "content": "hi"}]' -> '0 """ in second
    assert len(first) < 250

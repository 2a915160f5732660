"""One short run of what the README shows: the small pretrained model, real puzzles, the command line."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.vllm


def test_the_small_model_trains_on_countdown(small_model, tmp_path) -> None:
    flags = "--n-iterations 1 --population-size 4 --batch-size 8 --eval-limit 32 --experiment-name run"
    flags += " --antithetic --sigma 0.001 --alpha 0.0015"  # so few members need a smaller step
    command = [sys.executable, "-m", "esplug", "train", "--config", "examples/countdown_cpu.toml", *flags.split()]
    command += ["--model-name", str(small_model), "--output-directory", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, trained, after = rows
    # The pretrained model solves about a fifth of these puzzles, in the form that the worked example shows.
    assert 0.1 < before["eval/countdown_eval/pass@1/mean"] < 0.4
    assert before["eval/countdown_eval/metrics/format/mean"] > 0.9
    assert trained["train/tokens_per_second"] > 0
    assert after["eval/countdown_eval/reward/mean"] > 0.1
    record = json.loads((run / "train-output" / "iteration0.json").read_text())
    members = {(member["seed"], member["sign"]) for member in record["members"]}
    assert len(members) == 4
    assert {(seed, -sign) for seed, sign in members} == members  # mirrored pairs
    assert record["checksum"] in done.stdout
    assert "change" in done.stdout

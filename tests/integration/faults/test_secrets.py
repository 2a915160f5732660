"""Secrets in the environment: no file of a run contains one."""

import base64
import itertools
import json
import subprocess
import sys
import textwrap
import urllib.parse
from pathlib import Path

import pytest

from tests.helpers.secrets import SECRETS, secrets_in

PROXY_PASSWORD = "pr0xy-planted-pa55"
ENVIRONMENT = {**SECRETS, "HTTPS_PROXY": f"http://user:{PROXY_PASSWORD}@127.0.0.1:9", "NO_PROXY": "localhost"}


@pytest.mark.parametrize("secret", [*SECRETS.values(), PROXY_PASSWORD])
def test_a_leak_is_found_in_every_form(tmp_path: Path, secret: str) -> None:
    pairs = [
        f"{before}{secret}{after}".encode() for before, after in itertools.product(("", "x", "xy", "user:"), ("", "!"))
    ]
    leaks = {
        "plain": f"key: {secret}\n".encode(),
        "json": json.dumps({"key": secret}).encode(),
        "url": urllib.parse.quote(f"user:{secret}@host", safe="").encode(),
        "hex": secret.encode().hex().encode(),
        **{f"base64-{i}": base64.b64encode(text) for i, text in enumerate(pairs)},
        **{f"urlsafe-{i}": base64.urlsafe_b64encode(text) for i, text in enumerate(pairs)},
        "binary": b"\0\xff" + secret.encode() + b"\xfe",
    }
    (tmp_path / "deep").mkdir()
    (tmp_path / "clean").write_text("nothing of the kind")
    for name, data in leaks.items():
        (tmp_path / "deep" / name).write_bytes(data)
    assert secrets_in(tmp_path, [secret]) == sorted(tmp_path / "deep" / name for name in leaks)


WRITE = """
    import inspect, os, sys
    from dataclasses import asdict
    from pathlib import Path
    from types import SimpleNamespace

    import numpy as np
    import torch.utils.tensorboard  # a logger that imports it for too long is abandoned

    from esplug.config import make_config
    from esplug.es.members import population
    from esplug.evaluation.figures import Evaluation
    from esplug.evaluation.evaluator import EvaluationSplit
    from esplug.loggers.logger_set import LoggerSet
    from esplug.checkpoints.model_card import model_card
    from esplug.planning.placement import Plan
    from esplug.runs.result import results
    from esplug.runs.directory import RunDirectory, environment
    from esplug.checkpoints.seed_log import SeedLog
    from esplug.checkpoints.seed_log_records import Base, Header, Step
    from tests.helpers.evaluations import split

    plan = Plan(2, "cpu", 0, 1)
    config = make_config({
        "model_name": "tiny", "output_directory": sys.argv[1], "experiment_name": "run", "n_iterations": 1,
        "logging": "console,csv,jsonl,tensorboard,wandb",
    })
    run = RunDirectory.create(config, environment() | {"engines": asdict(plan)})
    loggers = LoggerSet(config.logging)
    loggers.start(config, run.path, 0)
    header = Header(Base("tiny", None, 1), "float32", config.seed, config.model_dump(exclude_none=True))
    with SeedLog.create(run.seed_log, header) as log:
        evaluation = Evaluation(0, [split("s", [(1.0, True)])], 1.0)
        run.write_evaluation("s", 0, evaluation.splits[0].record(0))
        loggers.samples(0, [sample.row() for sample in evaluation.splits[0].samples])
        loggers.log(0, evaluation.metrics())
        asked = {"s": EvaluationSplit(["one"], [[1]], ["1"])}
        run.write_results(results(config, Path("/models/tiny"), 1, plan, asked, evaluation))
        members = population(config.seed, 0, 2, antithetic=False)
        run.write_iteration(0, {"iteration": 0, "seeds": [member.seed for member in members]})
        loggers.log(0, {"train/reward/mean": 0.5})
        log.append(Step(0, (0.5, -0.5), False, 2))
    (run.path / "README.md").write_text(model_card(header, 1, 2, run.path, Path("no-card"), None))
    loggers.finish("finished")
"""


@pytest.mark.fault("secret in the environment", 1 + len(SECRETS))
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_nothing_that_a_run_writes_holds_a_secret(tmp_path: Path, mode: str) -> None:
    """Covers every file that needs no engine, including wandb's offline files."""
    pytest.importorskip("wandb")
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITE), str(tmp_path / "runs")],
        cwd=Path(__file__).parents[3],
        env={
            **{"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(home), "PYTHONPATH": "."},
            **ENVIRONMENT,
            **{"WANDB_MODE": mode, "WANDB_BASE_URL": "http://127.0.0.1:9"},
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "runs" / "printed").write_text(done.stdout + done.stderr)
    run = tmp_path / "runs" / "run"
    names = {path.name for path in run.rglob("*") if path.is_file()}
    expected = {
        "config.toml",
        "environment.json",
        "metrics.csv",
        "metrics.jsonl",
        "results.json",
        "seeds.log",
        "README.md",
    }
    assert names >= expected | {
        "iteration0.json",
        "model_eval_tasks_iteration0.json",
        "debug.log",
        "debug-internal.log",
    }
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    assert list(run.glob("tensorboard/events.*"))
    assert secrets_in(tmp_path, [*SECRETS.values(), PROXY_PASSWORD]) == []

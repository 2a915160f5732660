"""`esplug eval --compare` from start to end: in this process on toy engines; `make soak` does it with real ones."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esplug.evaluation.statistics import compare
from tests.helpers.cli import run_cli
from tests.helpers.toy import use_toys

ROWS = 18
SETTINGS = "--use-gpus none --dtype float32 --max-tokens 16 --max-model-len 512"


def perturbed(model: Path, folder: Path) -> Path:
    """Copy a model and change one of its tensors."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(model, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name] + np.random.default_rng(0).normal(0, 0.5, tensors[name].shape).astype("float32")
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("toys", [True, pytest.param(False, marks=[pytest.mark.vllm, pytest.mark.soak])])
def test_two_models_are_compared_from_start_to_end(toys, tiny_model, tmp_path, monkeypatch, capfd) -> None:
    """Rows are graded by a task that likes many of the tiny model's odd letters, so that rewards differ."""
    other = perturbed(tiny_model, tmp_path / "other")
    rows = [{"question": f"{n} + {n}", "answer": str(n)} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "letters.py").write_text(LETTERS)
    metadata = tmp_path / "acme_letters-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-letters\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("[esplug.tasks]\nletters = letters\n")
    compared = ["--max-reward", "0.5", "--compare", str(tiny_model), str(other), "--output-directory", "runs"]
    arguments = ["eval", "--task", "letters", "--eval-dataset", "rows.jsonl", *SETTINGS.split(), *compared]
    if toys:
        use_toys(monkeypatch)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        code, out, err = run_cli(monkeypatch, capfd, *arguments)
    else:
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}", "COLUMNS": "200"}
        command = [sys.executable, "-m", "esplug", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
        code, out, err = done.returncode, done.stdout, done.stderr
    assert code == 0, out + err
    folder = tmp_path / "runs" / f"compare-letters-{tiny_model.name}-other"
    record = json.loads((folder / "comparison.json").read_text())
    assert [record[name]["model"] for name in "AB"] == [str(tiny_model), str(other)]
    assert record["A"]["weights_checksum"] != record["B"]["weights_checksum"]
    ((name, split),) = record["splits"].items()
    a, b = (json.loads(next((folder / place / "eval-output").iterdir()).read_text())["samples"] for place in "AB")
    assert [(s["prompt"], s["target"]) for s in a] == [(s["prompt"], s["target"]) for s in b]
    assert [s["output"] for s in a] != [s["output"] for s in b]
    for figure, key in (("pass@1", "passed"), ("reward", "reward")):
        expected = compare(*([float(sample[key]) for sample in samples] for samples in (a, b)))
        written = split["changes"][figure]
        assert written["gained"] == list(expected.gained)
        assert written["lost"] == list(expected.lost)
        assert written["difference"] == pytest.approx(dataclasses.asdict(expected.difference))
        assert written["p_value"] == pytest.approx(expected.p_value)
        assert f"{len(expected.gained)} up, {len(expected.lost)} down" in out
    assert split["changes"]["reward"]["gained"] + split["changes"]["reward"]["lost"]
    for place in "AB":
        results = json.loads((folder / place / "results.json").read_text())
        assert results["model"]["weights_checksum"] == record[place]["weights_checksum"]
        assert results["splits"][name]["figures"]["reward"]["mean"] == split[place.lower()]["reward"]["mean"]
        assert results["task"]["distribution"] == "acme-letters"
        assert f"checksum {record[place]['weights_checksum']}" in out
    assert "its reward reaches --max-reward" in out


LETTERS = """
from esplug import hookimpl

@hookimpl
def collate(batch):
    return [row["question"] for row in batch], [row["answer"] for row in batch]

@hookimpl
def template(question):
    return question

@hookimpl
def reward(model_output, target):
    return sum(ord(letter) % 2 for letter in model_output) / max(1, len(model_output))
"""

"""Readers of the files that a run writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from esplug.runs.result import RunResult
from tests.integration.faults.harness import without_times


def strict_json(text: str) -> Any:
    """Read JSON as other languages do, which have no NaN in it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def read_iteration(run: Path, iteration: int) -> dict[str, Any]:
    return strict_json((run / "train-output" / f"iteration{iteration}.json").read_text())


def read_evaluation(run: Path, split: str, iteration: int) -> dict[str, Any]:
    return strict_json((run / "eval-output" / f"model_eval_task{split}_iteration{iteration}.json").read_text())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def record_of(result: RunResult) -> list[Any]:
    """Read all that a run wrote and that is no measurement."""
    files = sorted(result.run_dir.glob("*-output/*"))
    return [(file.name, without_times(strict_json(file.read_text()))) for file in files]

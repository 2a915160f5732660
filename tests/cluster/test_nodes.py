"""Runs on clusters of several real Ray nodes, which need not have the same files."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import Nodes, can_hide_folders, in_own_process

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not can_hide_folders(), reason="no rights to hide a folder from a process"),
]


def _vowels(output: str, target: Any) -> float:
    return sum(letter in "aeiou" for letter in output) / max(1, len(output))


def _trainer(model: Path, folder: Path, **settings: Any) -> Any:
    from esplug import EvolutionStrategiesTrainer

    questions = [f"Say {i}" for i in range(12)]
    return EvolutionStrategiesTrainer(
        model_name=str(model),
        reward_function=_vowels,
        train_dataloader=[(questions, questions)],
        eval_dataloader_dict={"seen": [(questions, questions)]},
        output_directory=str(folder),
        **{"dtype": "float32", "max_model_len": 128, "max_tokens": 8, "sigma": 0.05, "alpha": 0.1},
        **{"population_size": 4, "num_iterations": 2, "eval_freq": 0, "logging": "none"},
        **settings,
    )


def test_a_model_is_shipped_to_a_node_that_lacks_it(tiny_model, tmp_path) -> None:
    in_own_process(_ship, tiny_model, tmp_path)


def _ship(tiny_model: Path, tmp_path: Path) -> None:
    with Nodes(tmp_path / "nodes") as nodes:
        _check_shipping(nodes, tiny_model, tmp_path)


def _check_shipping(nodes: Nodes, tiny_model: Path, tmp_path: Path) -> None:
    from esplug.errors import UserError

    runs = tmp_path / "runs"
    runs.mkdir()
    nodes.add()
    nodes.add(hidden=[tiny_model, runs])
    cluster = {"ray_address": nodes.address, "n_vllm_engines": 2}
    with pytest.raises(
        UserError, match=r"^node 127\.0\.0\.3: no .*llama-tied there, or another model; .*--ship-model$"
    ):
        _trainer(tiny_model, runs, experiment_name="refused", **cluster).fit()
    assert not (runs / "refused").exists()
    result = _trainer(tiny_model, runs, experiment_name="shipped", ship_model=True, checkpoint_every=1, **cluster).fit()
    (shipped,) = (tmp_path / "nodes" / "node-3" / "cache" / "esplug" / "models").iterdir()
    assert {path.name for path in shipped.iterdir()} == {path.name for path in tiny_model.iterdir()}
    assert (result.model / "model.safetensors").stat().st_size == (tiny_model / "model.safetensors").stat().st_size
    alone = _trainer(tiny_model, runs, experiment_name="alone", use_gpus="none", n_vllm_engines=1).fit()
    assert result.checksum == alone.checksum
    assert (result.model / "model.safetensors").read_bytes() == (alone.model / "model.safetensors").read_bytes()

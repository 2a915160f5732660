"""Runs on clusters of several real Ray nodes, which need not have the same files."""

import json
from pathlib import Path

import pytest

from tests.helpers.own_process import in_own_process
from tests.helpers.ray_nodes import Nodes, can_hide_folders
from tests.helpers.vowels import short_run

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not can_hide_folders(), reason="no rights to hide a folder from a process"),
]


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
        short_run(tiny_model, runs, experiment_name="refused", **cluster).fit()
    assert not (runs / "refused").exists()
    result = short_run(
        tiny_model, runs, experiment_name="shipped", ship_model=True, checkpoint_every=1, **cluster
    ).fit()
    record = json.loads((result.run_dir / "train-output" / "iteration0.json").read_text())
    places = {(each["engine"], each["node"]) for member in record["members"] for each in member["engines"]}
    assert sorted(engine for engine, _ in places) == [0, 1]
    assert sorted(node for _, node in places) == ["127.0.0.2", "127.0.0.3"]
    (shipped,) = (tmp_path / "nodes" / "node-3" / "cache" / "esplug" / "models").iterdir()
    assert {path.name for path in shipped.iterdir()} == {path.name for path in tiny_model.iterdir()}
    assert (result.model / "model.safetensors").stat().st_size == (tiny_model / "model.safetensors").stat().st_size
    alone = short_run(tiny_model, runs, experiment_name="alone", use_gpus="none", n_vllm_engines=1).fit()
    assert result.checksum == alone.checksum
    assert (result.model / "model.safetensors").read_bytes() == (alone.model / "model.safetensors").read_bytes()

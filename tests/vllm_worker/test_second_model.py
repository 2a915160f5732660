"""A second model's weights beside the first's: each is written exactly, in any order."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from esplug.vllm_worker.extension import ESWorkerExtension, MasterSetup
from esplug.vllm_worker.heartbeat import Heartbeat


class Worker(ESWorkerExtension):
    """A worker without vLLM, which keeps what it would write into the model."""

    rank, device = 0, torch.device("cpu")
    model_runner = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))

    def _es_reload(self, tensors) -> None:
        self.written = dict(tensors)


@pytest.mark.parametrize("dtype", ["float32", "model"])
def test_each_models_weights_are_written_whatever_came_before(dtype, tiny_model: Path, tmp_path) -> None:
    first = load_file(tiny_model / "model.safetensors")
    second = {name: tensor + 0.5 for name, tensor in first.items()}
    save_file(second, tmp_path / "model.safetensors")
    worker = Worker()
    worker.es_load_without_places(MasterSetup(str(tiny_model), dtype, "host", 0.0, None, [[0]], Heartbeat().place))
    checksums = worker.es_tensor_checksums()
    worker.es_load_beside(MasterSetup(str(tmp_path), dtype, "host", 0.0, None, [[0]], Heartbeat().place))
    for expected, write in [
        (second, worker.es_set_beside),
        (first, lambda: worker.es_set_weights(None, 0.0)),
        (first, lambda: worker.es_set_weights(None, 0.0)),
        (second, worker.es_set_beside),
    ]:
        write()
        assert worker.written.keys() == expected.keys()
        assert all(torch.equal(worker.written[name], tensor) for name, tensor in expected.items())
    worker.es_set_weights(7, 0.1)
    assert not any(torch.equal(worker.written[name], first[name]) for name in first)
    assert worker.es_tensor_checksums() == checksums

"""The base model of the tests that replay a log."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.helpers.seed_logs import mixed_tensors


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(mixed_tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps({"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}, "name": "é"}), encoding="utf-8"
    )
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("[]")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- chat\n---\n# base model's own card\n")
    return folder

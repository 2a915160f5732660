"""State dicts of ``torch.save`` are joined with their model, and every mismatch is reported."""

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from esplug.checkpoints import tensor_files
from esplug.checkpoints.pth import join
from esplug.errors import UserError
from tests.helpers.tiny import make_tiny_model

WHAT = "--checkpoint w.pth"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Models with biases and bfloat16 weights, by whether their embeddings are tied."""
    root = tmp_path_factory.mktemp("bases")
    return {tied: make_tiny_model(root / f"tied-{tied}", "qwen2", tied, "bfloat16") for tied in (True, False)}


def trained(base: Path) -> dict[str, torch.Tensor]:
    """Return random weights with the model's names, shapes and types."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in sorted(load_file(base / "model.safetensors").items())
    }


def joined(content: Any, base: Path, folder: Path) -> dict[str, torch.Tensor]:
    torch.save(content, folder / "w.pth")
    return load_file(join(folder / "w.pth", base, folder / "out", WHAT) / "model.safetensors")


def refusal(content: Any, base: Path, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        joined(content, base, folder)
    message = str(caught.value)
    assert message.startswith(f"{WHAT}: ")
    assert "\n" not in message
    assert not (folder / "out").exists()
    assert not (folder / ".out.part").exists()
    return message


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def fused(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict with vLLM's names."""
    out = dict(state)
    for name in state:
        for first, others, whole in (
            ("q_proj", ("k_proj", "v_proj"), "qkv_proj"),
            ("gate_proj", ("up_proj",), "gate_up_proj"),
        ):
            if first in name:
                parts = [out.pop(name.replace(first, piece)) for piece in (first, *others)]
                out[name.replace(first, whole)] = torch.cat(parts)
    return out


# --- what fits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "policy.net."])
def test_wrappers_and_prefixes_are_removed(bases, tmp_path, wrapper, prefix) -> None:
    state = trained(bases[True])
    content: Any = {prefix + name: tensor for name, tensor in state.items()}
    assert same(joined({wrapper: content, "epoch": 3} if wrapper else content, bases[True], tmp_path), state)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("tied", [True, False])
def test_vllms_fused_names_with_padded_vocabularies(bases, tmp_path, prefix, tied) -> None:
    state = trained(bases[tied])
    content = fused(state)
    assert any("qkv_proj.bias" in name for name in content)
    content["model.rotary_emb.cos_sin_cache"] = torch.ones(3)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in content:
            content[name] = torch.cat([content[name], torch.full((20, 64), float("nan")).bfloat16()])
    if tied:
        content["lm_head.weight"] = content["model.embed_tokens.weight"].clone()
    assert same(joined({prefix + name: tensor for name, tensor in content.items()}, bases[tied], tmp_path), state)


def test_sizes_of_fused_blocks_come_from_the_model(tmp_path) -> None:
    base = make_tiny_model(tmp_path / "base", "llama", True, "bfloat16")  # fewer heads for keys than for queries
    state = trained(base)
    assert len({state[f"model.layers.0.self_attn.{x}_proj.weight"].shape for x in "qkv"}) == 2
    assert same(joined(fused(state), base, tmp_path), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tensors_are_converted_to_the_models_types(bases, tmp_path, dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in trained(bases[True]).items()}
    expected = {name: tensor.bfloat16() for name, tensor in state.items()}
    assert same(joined(state, bases[True], tmp_path), expected)


def test_chunks_and_layouts_do_not_matter(bases, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK", 1021)
    state = trained(bases[False])
    content = {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in state.items()}
    assert not all(tensor.is_contiguous() for tensor in content.values())
    assert same(joined(content, bases[False], tmp_path), state)


def test_parameters_and_shared_tensors_are_accepted(bases, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bases[True])
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    content = model.state_dict(keep_vars=True)
    assert "lm_head.weight" in content
    found = joined(content, bases[True], tmp_path)
    assert same(found, {name: content[name].detach() for name in found})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(tensor, content[name]) for name, tensor in again.state_dict().items())


def test_a_tied_head_that_the_model_stores_is_filled_in(bases, tmp_path) -> None:
    base = shutil.copytree(bases[False], tmp_path / "base")
    state = trained(base)
    head = state.pop("lm_head.weight")
    assert "1 of the model's tensors are missing (lm_head.weight)" in refusal(state, base, tmp_path)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    found = joined(state, base, tmp_path)
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert not torch.equal(found["lm_head.weight"], head)


def test_integer_tensors_are_copied_from_the_model(tmp_path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    own = {"w": torch.ones(3), "scalar": torch.tensor(2.0), "steps": torch.arange(5), "empty": torch.empty(0, 4)}
    save_file(own, base / "model.safetensors")
    new = {"w": torch.full((3,), 7.0), "scalar": torch.tensor(5.0), "empty": torch.empty(0, 4)}
    assert same(joined(new, base, tmp_path), own | new)


def test_configuration_and_tokenizer_are_copied_from_the_model(bases, tmp_path) -> None:
    joined(trained(bases[True]), bases[True], tmp_path)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (bases[True] / name).read_bytes()


# --- what does not ---------------------------------------------------------------------------------------------


def test_all_mismatches_are_reported_at_once(bases, tmp_path) -> None:
    state: dict[str, Any] = trained(bases[True])
    for name in [name for name in state if ".layers.1." in name]:
        del state[name]
    state["model.norm.weight"] = torch.ones(65)
    state["extra.weight"] = torch.ones(3)
    state["step"], state["ids"] = 7, torch.arange(3)
    message = refusal(state, bases[True], tmp_path)
    assert f"does not fit the model {bases[True]}: 12 of the model's tensors are missing (" in message
    assert re.search(r"missing \((model\.layers\.1\.[\w.]+, ){3}and 9 more\)", message)
    assert "1 are not in the model (extra.weight)" in message
    assert "1 have another shape (model.norm.weight is [65], in the model [64])" in message
    assert "2 cannot be used (step is int, not a tensor; ids is int64, not floating-point)" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update({"model.embed_tokens.weight": s["model.embed_tokens.weight"][:299]}), r"is \[299, 64\]"),
        (lambda s: s.update({"model.embed_tokens.weight": torch.ones(320, 63)}), r"is \[320, 63\], in the model \[300"),
        (lambda s: s.update({"model.norm.weight": torch.ones(80)}), r"is \[80\], in the model \[64\]"),
        (lambda s: s.update({"lm_head.weight": s["model.embed_tokens.weight"] * 2}), r"lm_head.weight differs from"),
        (lambda s: s.update({"lm_head.weight": torch.ones(3, 64)}), r"lm_head.weight differs from"),
        (lambda s: s.update({"model.layers.0.mlp.gate_up_proj.weight": torch.ones(192, 64)}), r"comes twice"),
        (lambda s: s.update({"model.norm.weight": torch.ones(64).to_sparse()}), r"is sparse"),
        (lambda s: s.update({"model.norm.weight": torch.ones(64, device="meta")}), r"without values"),
        (lambda s: s.update({"model.norm.weight": torch.ones(64, dtype=torch.complex64)}), r"complex64, not floating"),
    ],
)
def test_a_mismatch_is_named(bases, tmp_path, change, words) -> None:
    state = trained(bases[True])
    change(state)
    assert re.search(words, refusal(state, bases[True], tmp_path))


def test_rows_of_a_fused_tensor_must_add_up(bases, tmp_path) -> None:
    content = fused(trained(bases[True]))
    name = "model.layers.1.self_attn.qkv_proj.bias"
    content[name] = content[name][:-1]
    message = refusal(content, bases[True], tmp_path)
    assert f"{name} is [191], in the model [192]" in message
    assert "missing" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_named(bases, tmp_path, value) -> None:
    state = trained(bases[True])
    state["model.layers.1.mlp.up_proj.weight"][95, 63] = value
    message = refusal(state, bases[True], tmp_path)
    assert "tensor model.layers.1.mlp.up_proj.weight holds NaN or infinity" in message


def test_numbers_beyond_the_models_type_are_named(tmp_path) -> None:
    base = make_tiny_model(tmp_path / "base", dtype="float16")
    state = {name: tensor.float() for name, tensor in trained(base).items()}
    state["model.norm.weight"][3] = 70_000
    assert "model.norm.weight holds values too large for F16" in refusal(state, base, tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), 7, None])
def test_other_objects_than_state_dicts_are_refused(bases, tmp_path, content) -> None:
    assert "instead of a state dict" in refusal(content, bases[True], tmp_path)


def test_files_that_torch_does_not_write_are_refused(bases, tmp_path) -> None:
    torch.save(trained(bases[True]), tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("word/document.xml", "text")
    with zipfile.ZipFile(tmp_path / "good.pth") as source, zipfile.ZipFile(tmp_path / "packed", "w", 8) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    with zipfile.ZipFile(tmp_path / "script", "w") as archive:  # as torch.jit.save writes
        archive.writestr("script/data.pkl", "")
        archive.writestr("script/constants.pkl", "")
    torch.save(trained(bases[True]), tmp_path / "legacy", _use_new_zipfile_serialization=False)
    contents = [
        (b"", "empty; copy"),
        (b"hello", "not written by torch.save; give"),
        ((bases[True] / "model.safetensors").read_bytes(), "not written by torch.save; give"),
        (good[: len(good) // 2], "cut short or damaged"),
        (good[:-1], "cut short or damaged"),
        (good[: len(good) // 2] + b"!!" + good[len(good) // 2 + 2 :], "the checksum of .* is wrong"),
        ((tmp_path / "other.zip").read_bytes(), "a zip file, but not written by torch.save"),
        ((tmp_path / "packed").read_bytes(), "a zip file, but not written by torch.save"),
        ((tmp_path / "script").read_bytes(), "a TorchScript program"),
        ((tmp_path / "legacy").read_bytes(), "torch's old format"),
    ]
    for number, (content, words) in enumerate(contents):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^{WHAT}: [^\n]*{words}[^\n]*$"):
            join(path, bases[True], tmp_path / "out", WHAT)
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        join(tmp_path / "none.pth", bases[True], tmp_path / "out", WHAT)
    assert not (tmp_path / "out").exists()


def test_files_without_checksums_are_read(bases, tmp_path) -> None:
    state = trained(bases[True])
    torch.serialization.set_crc32_options(False)
    try:
        assert same(joined(state, bases[True], tmp_path), state)
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_target_that_cannot_be_written_is_one_line(bases, tmp_path) -> None:
    torch.save(trained(bases[True]), tmp_path / "w.pth")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^[^\n]*cannot be written \(Not a directory\)$"):
        join(tmp_path / "w.pth", bases[True], tmp_path / "file" / "out", WHAT)

"""Kinds of models: which a run refuses, with which remedy, and at which door."""

import importlib.util
import json
import re

import pytest

from esplug import EvolutionStrategiesTrainer
from esplug.checkpoints.base_model import check_on_hub, kind_of_folder, model_folder
from esplug.checkpoints.model_kind import ModelUse
from esplug.config import make_config
from esplug.doctor.model import check_model
from esplug.doctor.stack import Stack
from esplug.errors import UserError
from tests.helpers.cli import errors_of, run_cli
from tests.helpers.model_folders import LLAMA, PLAIN, make_folder
from tests.helpers.seed_logs import make_log

WEIGHTS = {"model.safetensors": PLAIN}
LAYER = "model.layers.0.mlp.down_proj"


def quantised(stated: dict, **tensors: tuple[str, tuple[int, ...]]) -> dict:
    """Return the files of a quantised model. A tensor's name is that of the layer and its own."""
    weights = {f"{LAYER}.{name}": header for name, header in tensors.items()}
    return {"config.json": LLAMA | stated, "model.safetensors": weights or PLAIN}


def stated(**settings) -> dict:
    return {"quantization_config": settings}


PACKED = {"qweight": ("I32", (4, 1)), "qzeros": ("I32", (1, 1)), "scales": ("F16", (1, 8))}
QUANTISED = {
    "awq": (quantised(stated(quant_method="awq", bits=4), **PACKED), r"\(AWQ, 4 bits\)", "unquantised"),
    "gptq": (quantised(stated(quant_method="gptq", bits=8), **PACKED), r"\(GPTQ, 8 bits\)", "unquantised"),
    "gptq-header": (quantised({}, **PACKED), rf"\(I32 values, tensor {LAYER}.qweight\)", "unquantised"),
    "gptq-file": (
        quantised({}, **PACKED) | {"quantize_config.json": {"bits": 4, "group_size": 128}},
        r"\(GPTQ, 4 bits\)",
        "unquantised",
    ),
    "fp8": (
        quantised(stated(quant_method="fp8"), weight=("F8_E4M3", (4, 4)), weight_scale_inv=("F32", (1, 1))),
        r"\(FP8\)",
        r"FineGrainedFP8Config\(dequantize=True\)",
    ),
    "fp8-header": (
        quantised({}, weight=("F8_E4M3", (4, 4))),
        rf"\(FP8, tensor {LAYER}.weight\)",
        r"FineGrainedFP8Config\(dequantize=True\)",
    ),
    "compressed-tensors": (
        quantised(stated(quant_method="compressed-tensors", format="pack-quantized"), weight_packed=("I32", (4, 1))),
        r"\(compressed-tensors\)",
        r"CompressedTensorsConfig\(dequantize=True\)",
    ),
    "compression_config": (
        quantised({"compression_config": {"format": "int-quantized"}}, weight=("I8", (4, 4))),
        r"\(compressed-tensors\)",
        "CompressedTensorsConfig",
    ),
    "int8-header": (quantised({}, weight=("I8", (4, 4))), rf"\(I8 values, tensor {LAYER}.weight\)", "unquantised"),
    "bitsandbytes": (
        quantised(stated(load_in_4bit=True), weight=("U8", (8, 1))),
        r"\(bitsandbytes, 4 bits\)",
        r"dequantize\(\)",
    ),
    "mxfp4": (
        quantised(stated(quant_method="mxfp4"), down_proj_blocks=("U8", (1, 4, 4)), down_proj_scales=("U8", (1, 4))),
        r"\(MXFP4\)",
        r"Mxfp4Config\(dequantize=True\)",
    ),
    "mxfp4-header": (
        quantised({}, down_proj_blocks=("U8", (1, 4, 4))),
        rf"\(U8 values, tensor {LAYER}.down_proj_blocks\)",
        "unquantised",
    ),
    "modelopt": (
        quantised({}, weight=("U8", (4, 2))) | {"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}},
        r"\(ModelOpt, NVFP4\)",
        "unquantised",
    ),
    "torchao": (quantised(stated(quant_method="torchao"), weight=("I8", (4, 4))), r"\(torchao\)", "unquantised"),
    "inner": (
        quantised({"text_config": stated(quant_method="awq", bits=4)}, **PACKED),
        r"\(AWQ, 4 bits\)",
        "unquantised",
    ),
    "on-load": (
        quantised(stated(quant_method="bitsandbytes", load_in_4bit=True)),
        "though the files hold BF16 weights",
        "remove quantization_config",
    ),
    "card": (
        quantised(stated(quant_method="awq", bits=4), **PACKED) | {"README.md": "---\nbase_model:\n- org/Plain\n---\n"},
        "AWQ",
        r"unquantised model \(org/Plain\)$",
    ),
    "Some-7B-Instruct-AWQ": (
        quantised(stated(quant_method="awq", bits=4), **PACKED),
        "AWQ",
        r"unquantised model \(perhaps Some-7B-Instruct\)$",
    ),
    "Some-7B-GPTQ-Int4": (quantised({}, **PACKED), "I32", r"\(perhaps Some-7B\)$"),
}

LORA = {"adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "org/Base-7B"}}
ADAPTER = {"adapter_model.safetensors": {"lora_A.weight": ("F32", (1, 4))}}
CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
OWN = {"model_type": "x-own", "architectures": ["XForCausalLM"], "auto_map": CODE}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}


def of(architecture: str, model_type: str = "llama") -> dict:
    return {"config.json": {"model_type": model_type, "architectures": [architecture]}, **WEIGHTS}


OTHERS = {
    "lora": (LORA | ADAPTER, "a LoRA adapter of org/Base-7B", r"merge_and_unload\(\)"),
    "lora-with-config": (LORA | ADAPTER | {"config.json": LLAMA}, "a LoRA adapter of org/Base-7B", "merge_and_unload"),
    "ia3": (ADAPTER | {"adapter_config.json": {"peft_type": "IA3"}}, "a IA3 adapter, not a whole model", "merge"),
    "lora-in-model": (LORA | ADAPTER | WEIGHTS | {"config.json": LLAMA}, "a model and a LoRA adapter", "move"),
    "Some-7B-GGUF": ({"some-7b-q4_0.gguf": "GGUF"}, r"GGUF files \(some-7b-q4_0.gguf\)", "perhaps Some-7B"),
    "gguf": ({"x.gguf": "GGUF", "config.json": LLAMA, "README.md": "---\nbase_model: o/P\n---\n"}, "GGUF", "o/P"),
    "bin": ({"config.json": LLAMA, "pytorch_model.bin": ""}, r"only pytorch_model.bin", "save_pretrained"),
    "training-rest": ({"config.json": LLAMA, "training_args.bin": ""}, "only other files", "save_pretrained"),
    "no-weights": ({"config.json": LLAMA}, "no .*weights", "save_pretrained"),
    "meta": ({"params.json": {}, "consolidated.00.pth": ""} | WEIGHTS, "maker's own format", "Hugging Face version"),
    "diffusers": ({"model_index.json": {}} | WEIGHTS, "diffusers", "causal language model"),
    "sentence": (of("Qwen3ForCausalLM", "qwen3") | {"modules.json": []}, "embedding model", "causal language model"),
    "t5": ({"config.json": T5} | WEIGHTS, "an encoder-decoder model", "causal language model"),
    "bert": (of("BertForMaskedLM", "bert"), r"\(BertForMaskedLM\), which generates no text", "causal language model"),
    "headless": (of("LlamaModel"), "an embedding model", "causal language model"),
    "other-headless": (of("NoSuchModel"), "without a language-model head", "causal language model"),
    "reward": (of("Qwen2ForSequenceClassification", "qwen2"), "reward model", "causal language model"),
    "tagger": (of("LlamaForTokenClassification"), "a token classifier", "causal language model"),
    "draft": (of("EagleLlamaForCausalLM"), "a draft model for speculative decoding", "causal language model"),
    "unknown": (of("NoSuchForCausalLM", "no-such"), "implements NoSuchForCausalLM", "upgrade"),
    "code": (
        {"config.json": OWN} | WEIGHTS,
        r"Python code of its own \(configuration_x.py, modeling_x.py\)",
        "--trust-remote-code",
    ),
    "remote-code": (
        {"config.json": OWN | {"auto_map": {"AutoConfig": "org/repo--configuration_x.XConfig"}}} | WEIGHTS,
        r"\(configuration_x.py of org/repo\)",
        "--trust-remote-code",
    ),
    "tokenizer-code": (
        {
            "config.json": LLAMA | {"model_type": "x-own"},
            "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tok.X", None]}},
        }
        | WEIGHTS,
        r"\(tok.py\)",
        "--trust-remote-code",
    ),
}


@pytest.mark.parametrize("name", [*QUANTISED, *OTHERS])
def test_a_model_that_cannot_be_trained_is_refused_in_one_line_with_a_remedy(name, tmp_path) -> None:
    files, fault, remedy = {**QUANTISED, **OTHERS}[name]
    folder = make_folder(tmp_path / name, files)
    with pytest.raises(UserError, match=fault) as caught:
        model_folder(str(folder))
    said = str(caught.value)
    assert said.startswith(f"--model-name {folder}: ")
    assert "\n" not in said
    with pytest.raises(UserError, match=remedy):
        model_folder(str(folder))


@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_model_can_be_evaluated_as_it_is(name, tmp_path) -> None:
    kind = kind_of_folder(make_folder(tmp_path / name, QUANTISED[name][0]), ModelUse(perturbs=False))
    assert kind.quantised
    assert len(kind.notes()) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_cannot_even_be_evaluated(name, tmp_path) -> None:
    with pytest.raises(UserError):
        kind_of_folder(make_folder(tmp_path / name, OTHERS[name][0]), ModelUse(perturbs=False))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": LLAMA, **WEIGHTS},
        {"config.json": {}, **WEIGHTS},
        {"config.json": LLAMA | {"quantization_config": None}, **WEIGHTS},
        of("GPT2LMHeadModel", "gpt2")
        | {"model.safetensors": {"h.0.attn.bias": ("U8", (1, 1, 4, 4)), "h.0.attn.c_attn.weight": ("F32", (4, 4))}},
        {"config.json": LLAMA, "model.safetensors": PLAIN | {"model.rotary.position_ids": ("I64", (1, 8))}},
        {"config.json": LLAMA, "model.safetensors": PLAIN | {"model.layers.0.attn.k_scale": ("F32", ())}},
        {"config.json": LLAMA, "model-q4.gguf": "GGUF", "pytorch_model.bin": "", **WEIGHTS},
        {"config.json": {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "auto_map": CODE}, **WEIGHTS},
        of("ChatGLMModel", "chatglm"),
    ],
    ids=["plain", "bare", "null", "gpt2-mask", "positions", "kv-scale", "all-formats", "native-code", "named-model"],
)
def test_ordinary_models_are_accepted(files, tmp_path) -> None:
    kind = kind_of_folder(make_folder(tmp_path / "model", files), ModelUse())
    assert (kind.quantised, kind.code) == (None, ())


VISION = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "vision_config": {"a": 1}}


@pytest.mark.parametrize("installed", [True, False])
def test_a_multimodal_model_needs_torchvision_and_says_what_is_perturbed(installed, tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    found = find("json") if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "torchvision" else find(name))
    folder = make_folder(tmp_path / "vision", {"config.json": VISION, **WEIGHTS})
    if not installed:
        with pytest.raises(UserError, match=r"multimodal model \(Gemma3.*needs torchvision; install the build"):
            kind_of_folder(folder, ModelUse())
        return
    (training,) = kind_of_folder(folder, ModelUse()).notes()
    (evaluation,) = kind_of_folder(folder, ModelUse(perturbs=False)).notes()
    assert "all its weights are perturbed" in training
    assert evaluation == "a multimodal model: prompts are text only"


def test_trusted_code_is_accepted_with_a_warning_of_what_runs(tmp_path) -> None:
    folder = make_folder(tmp_path / "own", OTHERS["code"][0])
    (note,) = kind_of_folder(folder, ModelUse(trusts_code=True)).notes()
    assert "configuration_x.py, modeling_x.py" in note
    assert "every machine" in note


# --- every door ------------------------------------------------------------------------------------------

DOORS = {
    "train": ("train", "--n-iterations", "1"),
    "dry-run": ("train", "--dry-run", "--no-probe"),
    "checkpoint": ("train", "--model-name", "owner/other", "--checkpoint"),
    "doctor": ("doctor",),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["awq", "lora", "Some-7B-GGUF", "t5", "code"])
def test_every_command_refuses_before_anything_is_loaded(name, door, tmp_path, monkeypatch, capfd) -> None:
    files, fault, _ = {**QUANTISED, **OTHERS}[name]
    folder = make_folder(tmp_path / name, files)
    monkeypatch.chdir(tmp_path)
    if door == "doctor":
        finding = check_model(make_config({"model_name": str(folder)}), Stack())[1][0]
        assert finding.state == "fail"
        assert finding.found.startswith(f"--model-name {folder}: ")
        return
    flag = () if door == "checkpoint" else ("--model-name",)
    code, _, err = run_cli(monkeypatch, capfd, *DOORS[door], *flag, name, "--task", "countdown")
    (error,) = errors_of(err)
    assert code == 2
    assert str(folder) in error
    assert re.search(fault, error)
    assert not (tmp_path / "experiments").exists() or not any((tmp_path / "experiments").iterdir())


def test_python_refuses_too(tmp_path, monkeypatch) -> None:
    folder = make_folder(tmp_path / "awq", QUANTISED["awq"][0])
    trainer = EvolutionStrategiesTrainer(
        model_name=str(folder),
        reward_function=lambda answer, target: 0.0,
        train_dataloader=[(["a"], ["b"])],
        output_directory=str(tmp_path / "runs"),
        logging=None,
    )
    with pytest.raises(UserError, match="AWQ"):
        trainer.fit()


def test_eval_refuses_what_vllm_cannot_answer_with(tmp_path, monkeypatch, capfd) -> None:
    folder = make_folder(tmp_path / "lora", OTHERS["lora"][0])
    for arguments in (("--model-name", str(folder)), ("--compare", str(folder), str(folder))):
        code, _, err = run_cli(monkeypatch, capfd, "eval", *arguments, "--task", "countdown")
        (error,) = errors_of(err)
        assert code == 2
        assert "a LoRA adapter of org/Base-7B" in error


def test_export_refuses_a_quantised_base(tmp_path, base) -> None:
    from esplug.checkpoints.export import export

    make_log(tmp_path / "seeds.log", base)
    folder = make_folder(tmp_path / "awq", QUANTISED["awq"][0])
    with pytest.raises(UserError, match=f"^--base {folder}: a quantised model"):
        export(tmp_path / "seeds.log", tmp_path / "out", base=folder)


# --- on the Hub ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["awq", "lora", "Some-7B-GGUF", "bin", "t5", "code"])
def test_a_model_on_the_hub_is_refused_before_its_weights_are_downloaded(name, tmp_path, monkeypatch) -> None:
    files, fault, _ = {**QUANTISED, **OTHERS}[name]
    small = {key: value for key, value in files.items() if key.endswith(".json")}
    folder = make_folder(tmp_path / "cache", small)

    def snapshot(repo, revision, allow_patterns, local_files_only) -> str:
        assert not any("safetensors" in pattern or "*" in pattern for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("esplug.checkpoints.base_model.hub_files", lambda *_: list(files))
    monkeypatch.setattr("esplug.checkpoints.base_model.hub_revision", lambda *_: "c0ffee")
    with pytest.raises(UserError, match=fault):
        model_folder(f"org/{name}")
    with pytest.raises(UserError, match=rf"^--checkpoint org/{name}: "):
        check_on_hub(f"org/{name}", "c0ffee", ModelUse(), "--checkpoint")


def test_an_interrupted_download_is_not_taken_for_damage(tmp_path, monkeypatch) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": LLAMA, "model-1.safetensors": PLAIN, "model.safetensors.index.json": index}
    folder = make_folder(tmp_path / "cache", files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    monkeypatch.setattr("esplug.checkpoints.base_model.hub_files", lambda *_: [*files, "model-2.safetensors"])
    kind = check_on_hub("org/model", "c0ffee", ModelUse(), "--model-name")
    assert kind is not None
    assert kind.quantised is None


# --- the setting -----------------------------------------------------------------------------------------


def test_trust_is_off_by_default_recorded_and_kept_by_a_resumed_run(tmp_path) -> None:
    from esplug.runs.directory import RunDirectory
    from esplug.runs.resume import inherited

    assert not make_config().trust_remote_code
    config = make_config({"output_directory": str(tmp_path), "trust_remote_code": True})
    run = RunDirectory.create(config, {"python": "3"})
    assert "trust_remote_code = true" in run.config.read_text()
    assert inherited(run.path, {})["trust_remote_code"] is True


def test_an_exported_model_keeps_its_code(tmp_path, base) -> None:
    from esplug.checkpoints.export import export

    (base / "modeling_x.py").write_text("raise SystemExit('must not run')\n")
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps(config | OWN), encoding="utf-8")
    make_log(tmp_path / "seeds.log", base)
    out = export(tmp_path / "seeds.log", tmp_path / "out").folder
    assert (out / "modeling_x.py").read_bytes() == (base / "modeling_x.py").read_bytes()
    assert "modeling_x.py" in json.loads((out / "esplug.json").read_text())["files"]

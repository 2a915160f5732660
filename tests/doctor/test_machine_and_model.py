"""`esplug doctor`: whether the model fits the machine, and the remedies if not."""

import json
import re
import shutil
from pathlib import Path

import pytest

from esplug.config import make_config
from esplug.doctor.finding import Finding
from esplug.doctor.machine import check_disk, check_machine
from esplug.doctor.model import check_fit, check_model
from esplug.doctor.stack import Stack
from esplug.engines.messages import EngineSettings
from esplug.engines.vllm_options import shared_gpu_kv_cache
from esplug.errors import UserError
from esplug.planning.memory import Gpu, MemoryPlan, master_bytes, plan_memory
from esplug.planning.placement import GPU_SPARE, Plan
from esplug.runs.engines import warn_of_slow_types
from esplug.utils.cores import GIB


@pytest.fixture
def host(monkeypatch) -> None:
    """Give the machine 64 GiB of memory and four cores."""
    for module in ("machine", "model"):
        monkeypatch.setattr(f"esplug.doctor.{module}.free_memory", lambda: 64 * GIB)
    monkeypatch.setattr("esplug.doctor.machine.usable_cores", lambda: [0, 1, 2, 3])


ROOMY = Gpu("A", 80 * GIB, 79 * GIB)
FULL = Gpu("A", 80 * GIB, GIB)


def fit(folder: Path, gpus: list[Gpu], settings: dict | None = None) -> tuple[MemoryPlan | None, list[Finding]]:
    return check_fit(make_config(settings or {}), folder, Stack(gpus=gpus, cuda="12.9"))


def failures(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.state == "fail"]


def memory_of(folder: Path, settings: dict, plan: Plan, free: int = 64 * GIB, gpus: list[Gpu] | None = None):
    return plan_memory(folder, make_config(settings), plan, free, gpus or [])


def test_the_memory_of_a_cpu_engine(tiny_model) -> None:
    stored = (tiny_model / "model.safetensors").stat().st_size  # in float32
    memory = memory_of(tiny_model, {}, Plan(2, "cpu", 0, 1))
    sizes = {item.what: item.nbytes for item in memory.items}
    assert stored - 10_000 < sizes["master"] < stored  # the file also has a header
    assert sizes["weights"] == sizes["weights, packed"] == sizes["master"] // 2
    exact = memory_of(tiny_model, {"dtype": "float32"}, Plan(2, "cpu", 0, 1))
    assert {item.nbytes for item in exact.items if "weights" in item.what} == {sizes["master"]}
    assert sizes["KV cache"] == GIB // 4
    assert memory.used("memory") == 2 * sum(sizes.values())
    per_token = 2 * 2 * 1 * 32 * 2  # keys and values, layers, heads, width, bytes
    assert memory.kv_tokens == GIB // 4 // per_token
    # The cache holds the 256 answers that vLLM decodes at a time at full length, and is no larger.
    shorter, longer = (
        memory_of(tiny_model, {"dtype": "float32", "max_model_len": length}, Plan(1, "cpu", 0, 1)).kv_tokens
        for length in (4096, 100_000)
    )
    assert 256 * 4096 <= shorter <= 256 * (4096 + 64)
    assert longer == 4 * GIB // (2 * per_token)
    with_adapters = memory_of(tiny_model, {"perturbation": "low-rank"}, Plan(2, "cpu", 0, 1))
    assert {item.what for item in with_adapters.items} - sizes.keys() == {"adapters"}


def test_where_the_master_is_kept_on_a_gpu(tiny_model) -> None:
    roomy, small = Gpu("A", 80 * GIB, 79 * GIB), Gpu("B", 24 * GIB, 23 * GIB)
    one = Plan(1, "cuda", 1, 1)

    def place(settings: dict, gpu: Gpu) -> str:
        memory = memory_of(tiny_model, settings, one, gpus=[gpu])
        return next(item.place for item in memory.items if item.what == "master")

    assert place({}, roomy) == "GPU"
    assert place({"gpu_memory_utilization": 0.9}, small) == "memory"  # the remainder is the reserve
    assert place({}, small) == "GPU"  # vLLM uses less
    assert place({}, Gpu("C", 4 * GIB, 4 * GIB)) == "memory"
    assert place({"master_device": "host"}, roomy) == "memory"
    cache = next(item for item in memory_of(tiny_model, {}, one, gpus=[roomy]).items if item.what == "KV cache")
    assert 68 * GIB < cache.nbytes < 69 * GIB  # 0.9 of 80, minus 3 for activations


@pytest.mark.parametrize(
    ("settings", "gpus", "check", "remedy"),
    [
        ({}, [Gpu("A", 80 * GIB, 20 * GIB)], "GPU memory", "--gpu-memory-utilization 0.24"),
        ({}, [ROOMY, FULL], "GPU memory", "set --use-gpus 0"),
        (
            {"use_gpus": "3,5", "n_vllm_engines": 2},
            [FULL, ROOMY],
            "GPU memory",
            "--use-gpus 5 with fewer --n-vllm-engines",
        ),
        ({"master_device": "gpu"}, [Gpu("A", 4 * GIB, 4 * GIB)], "GPU memory", "use --master-device host"),
        ({"gpu_memory_utilization": 0.03}, [ROOMY], "GPU memory", "--n-gpu-per-vllm-engine 2"),
        ({"n_vllm_engines": 3}, [ROOMY], "engines", ""),
        ({"master_device": "gpu"}, [], "engines", ""),
    ],
)
def test_too_little_memory_is_a_failure_with_a_remedy(settings, gpus, check, remedy, host, tiny_model) -> None:
    _, findings = fit(tiny_model, gpus, settings)
    (failure,) = failures(findings)
    assert failure.check == check
    assert remedy in failure.remedy


def test_a_useless_share_of_a_gpu_is_not_suggested(host, tiny_model) -> None:
    (failure,) = failures(fit(tiny_model, [FULL])[1])
    assert failure.remedy == "end the processes that use the GPU"


def test_a_full_gpu_that_the_run_does_not_need_is_a_warning(host, tiny_model) -> None:
    memory, findings = fit(tiny_model, [FULL, Gpu("B", 80 * GIB, 79 * GIB)], {"n_vllm_engines": 1})
    (found,) = (finding for finding in findings if finding.check == "GPU memory")
    assert (memory.gpu.name, found.state) == ("B", "warning")
    assert "--use-gpus 1" in found.remedy


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"n_vllm_engines": 3}, [ROOMY]),
        ({}, [Gpu("A", 80 * GIB, 20 * GIB)]),
        ({"use_gpus": "none", "n_vllm_engines": 10_000}, []),
    ],
)
def test_failures_are_warnings_if_a_cluster_may_have_more(settings, gpus, host, tiny_model) -> None:
    for address, state in ((None, "fail"), ("auto", "warning")):
        _, findings = fit(tiny_model, gpus, settings | ({"ray_address": address} if address else {}))
        (found,) = (finding for finding in findings if finding.state == state)
        assert ("counted on this machine only" in found.found) == bool(address)
        assert not (address and failures(findings))


@pytest.mark.parametrize(
    ("settings", "gpus", "proposed"),
    [
        ({}, [ROOMY], 4),
        ({}, [Gpu("A", 24 * GIB, 23 * GIB)], 2),  # four do not fit
        ({}, [Gpu("A", 12 * GIB, 11 * GIB)], None),
        ({}, [ROOMY] * 2, 2),  # four cores
        ({}, [ROOMY] * 3, None),
        ({"n_vllm_engines_per_gpu": 2}, [ROOMY], None),
        ({"use_gpus": "none"}, [ROOMY], None),
        ({}, [], None),
    ],
)
def test_several_engines_per_gpu_are_suggested_for_a_small_model(settings, gpus, proposed, host, tiny_model) -> None:
    _, findings = fit(tiny_model, gpus, settings)
    assert "--n-vllm-engines-per-gpu" not in str(findings)  # the rollout loop leaves no GPU idle
    _, findings = fit(tiny_model, gpus, settings | {"rollout": "vllm"})
    (found,) = (finding.found for finding in findings if finding.check == "engines")
    assert re.findall(r"--n-vllm-engines-per-gpu (\d+)", found) == ([str(proposed)] if proposed else [])


def fake_gpu(monkeypatch, free: int, total: int) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, total))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.parametrize("choice", ["auto", "gpu", "host"])
@pytest.mark.parametrize("sharing", [1, 2])
@pytest.mark.parametrize("missing", [0, 1])
def test_the_doctor_and_the_worker_agree_on_the_masters_place(
    choice, sharing, missing, host, tiny_model, monkeypatch
) -> None:
    import torch

    from esplug.vllm_worker.extension import ESWorkerExtension
    from esplug.weights.rank_group import RankGroup

    total, needed = 80 * GIB, master_bytes(tiny_model, "float32")
    share = 0.9 if sharing == 1 else 0.7
    left = needed + GPU_SPARE - missing  # left to each engine after vLLM's share
    gpu = Gpu("A", total, int(share * total) + sharing * left)
    settings = {"master_device": choice, "n_vllm_engines_per_gpu": sharing, "n_vllm_engines": sharing}
    memory, findings = fit(tiny_model, [gpu], settings)
    fake_gpu(monkeypatch, left, total)
    worker = ESWorkerExtension()
    worker.device = torch.device("cuda")
    try:
        in_host = worker._es_keep_in_host(needed, (1 - share) / sharing, choice, RankGroup())
    except UserError:
        assert [finding.check for finding in failures(findings)] == ["GPU memory"]
    else:
        assert not failures(findings)
        assert {item.place for item in memory.items if item.what == "master"} == {"memory" if in_host else "GPU"}


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("missing", [0, 1])
def test_the_doctor_and_engines_that_share_a_gpu_agree_on_the_kv_cache(
    dtype, rank, missing, host, tiny_model, monkeypatch
) -> None:
    from esplug.checkpoints.base_model import weights_size
    from esplug.planning.adapter_sizes import adapter_elements

    width, config = (4 if dtype == "float32" else 2), {"dtype": dtype, "n_vllm_engines_per_gpu": 2}
    config |= {"gpu_memory_utilization": 0.5, "n_vllm_engines": 2}
    config |= {"perturbation": "low-rank", "rank": rank} if rank else {}
    members = make_config(config).members_at_once(2)
    numbers = weights_size(tiny_model)[1] + (adapter_elements(tiny_model, rank, members) if rank else 0)
    total = 4 * (width * numbers + 7 * GIB // 2 - missing)  # 3 GiB for activations, half a GiB for the cache
    memory, findings = fit(tiny_model, [Gpu("A", total, total)], config)
    fake_gpu(monkeypatch, total, total)
    engine = EngineSettings(
        str(tiny_model), dtype, "float32", "auto", "cuda", 1, None, 0.5, rank, members, engines_per_gpu=2
    )
    if missing:
        with pytest.raises(UserError, match="too little for this model"):
            shared_gpu_kv_cache(engine, 0.5)
        (failure,) = failures(findings)
        assert "no memory for a KV cache" in failure.found
    else:
        assert shared_gpu_kv_cache(engine, 0.5) == memory.kv_cache == GIB // 2
        assert not failures(findings)


@pytest.mark.parametrize(
    ("described", "known"),
    [
        ({}, True),
        ({"sliding_window": 32768, "use_sliding_window": False}, True),
        ({"sliding_window": 32768}, False),
        ({"layer_types": ["full_attention", "full_attention"]}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
    ],
)
def test_whether_the_kv_cache_can_be_counted_in_tokens(described, known, host, tiny_model, tmp_path) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    own = json.loads((tiny_model / "config.json").read_text())
    own = {key: value for key, value in own.items() if key not in ("layer_types", "sliding_window")}
    (tmp_path / "config.json").write_text(json.dumps(own | described))
    _, findings = check_fit(make_config({"n_vllm_engines": 1}), tmp_path, Stack())
    (found,) = (finding.found for finding in findings if finding.check == "KV cache")
    assert ("tokens, " in found, "unknown" in found) == (known, not known)


def test_a_model_that_is_missing_damaged_or_unreachable(tiny_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("esplug.doctor.model.hub_revision", lambda *_: None)
    config = make_config({"model_name": str(tiny_model)})
    for supported, odd in (("LlamaForCausalLM", []), ("OtherForCausalLM", ["no implementation of LlamaForCausalLM"])):
        folder, findings = check_model(config, Stack(architectures=[supported]))
        assert folder == tiny_model.resolve()
        warnings = [finding for finding in findings if finding.state != "ok"]
        assert [word in finding.found for finding, word in zip(warnings, odd, strict=True)] == [True] * len(odd)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("torn")
    damaged = (str(tmp_path), "damaged")
    for name, words in (("nobody/no-such", "the Hub cannot be reached"), ("./no/such", "no such folder"), damaged):
        folder, (found,) = check_model(make_config({"model_name": name}), Stack())
        assert (folder, found.state) == (None, "fail")
        assert words in found.found
    monkeypatch.setattr("esplug.doctor.model.hub_revision", lambda *_: "c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    _, (found,) = check_model(make_config({"model_name": "somebody/some"}), Stack())
    assert found.state == "ok"
    assert f"into {tmp_path}, where" in found.found
    assert "GB are free" in found.found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, (found,) = check_model(make_config({"model_name": "nobody/no-such"}), Stack())
    assert "HF_HUB_OFFLINE is set" in found.found


@pytest.mark.parametrize(
    ("architectures", "words"),
    [
        (["Qwen3MoeForCausalLM"], "written directly"),
        (["GraniteMoeForCausalLM"], "vLLM's loader"),
        (["StableLmForCausalLM"], "not tested"),
    ],
)
def test_how_weights_are_written_is_said_before_a_model_is_loaded(architectures, words, tiny_model, tmp_path) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    config = json.loads((tiny_model / "config.json").read_text()) | {"architectures": architectures}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, findings = check_model(make_config({"model_name": str(tmp_path)}), Stack())
    (found,) = (finding.found for finding in findings if finding.check == "weights")
    assert words in found


def test_low_rank_members_of_experts_are_refused_before_anything_starts(host, tiny_models) -> None:
    for architecture in ("qwen3_moe", "mixtral", "granitemoe"):
        _, findings = check_fit(make_config({"perturbation": "low-rank"}), tiny_models(architecture), Stack())
        assert [finding.state for finding in findings] == ["fail"]
        assert "has experts" in findings[0].found


def test_a_small_disk_is_a_failure_or_a_warning(tmp_path) -> None:
    config = make_config({"output_directory": str(tmp_path / "runs"), "checkpoint_every": 1, "keep_checkpoints": 2})
    assert check_disk(config, 1, 1).state == "ok"
    assert check_disk(config, 1, 10**18).state == "warning"
    assert check_disk(config, 10**18, 1).state == "fail"
    assert check_disk(make_config({"output_directory": str(tmp_path), "n_iterations": 0}), 10**18, 10**18).state == "ok"


@pytest.mark.parametrize(
    ("sets", "dtype", "gpus", "expected"),
    [
        ({"avx2"}, "auto", [], "--dtype float32"),
        ({"avx2"}, "bfloat16", [], "--dtype float32"),
        ({"avx2"}, "float32", [], ""),
        ({"avx2"}, "auto", [ROOMY], ""),
        ({"avx2", "avx512f"}, "auto", [], ""),
        ({"asimd"}, "auto", [], ""),
        (set(), "auto", [], ""),
    ],
)
def test_a_type_that_is_slow_on_this_cpu(monkeypatch, capfd, sets, dtype, gpus, expected) -> None:
    """The doctor and a run say the same."""
    for module in ("utils.cores", "doctor.machine"):
        monkeypatch.setattr(f"esplug.{module}.instruction_sets", lambda: frozenset(sets))
    config = make_config({"dtype": dtype})
    found = next(each for each in check_machine(config, Stack(gpus=gpus)) if each.check == "CPU")
    assert expected in found.remedy if expected else found.state == "ok" or "AVX2" in found.found
    warn_of_slow_types(config, Plan(2, "cuda" if gpus else "cpu", 1, 1))
    said = capfd.readouterr()
    assert (expected in said.out + said.err) if expected else not said.err + said.out

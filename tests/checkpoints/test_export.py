"""Exported models have the bytes that the run would have saved, and appear complete or not at all."""

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from esplug.checkpoints import safetensors_shards as shards
from esplug.checkpoints import tensor_files
from esplug.checkpoints.export import export
from esplug.checkpoints.seed_log import SeedLog
from esplug.checkpoints.seed_log_records import Base, Header, Step
from esplug.errors import RunError, UserError
from esplug.weights.master import MasterWeights
from tests.helpers.seed_logs import make_log, mixed_tensors, same_files
from tests.helpers.tiny import make_tiny_model


@pytest.mark.parametrize("master_dtype", ["float32", "model"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "how", [{"antithetic": False}, {"antithetic": True}, {"momentum": 0.4}, {"low_rank": 3, "momentum": 0.1}], ids=str
)
def test_export_equals_the_saved_master_byte_for_byte(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master_dtype: str, dtype: Any, how: dict[str, Any]
) -> None:
    monkeypatch.setattr(tensor_files, "CHUNK", 1021)
    masters = make_log(tmp_path / "seeds.log", base, master_dtype=master_dtype, **how)
    exported = export(tmp_path / "seeds.log", tmp_path / "out", dtype=dtype, threads=3)
    masters[-1].save(tmp_path / "saved", getattr(torch, dtype) if dtype else None)
    same_files(tmp_path / "out", tmp_path / "saved")
    assert exported.folder == tmp_path / "out"
    assert (exported.iteration, exported.checksum, exported.torn) == (4, masters[-1].checksum(), False)
    assert exported.nbytes == sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())


@pytest.mark.parametrize("iteration", range(5))
def test_every_iteration_can_be_exported(base: Path, tmp_path: Path, iteration: int) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    exported = export(tmp_path / "seeds.log", tmp_path / "out", iteration=iteration)
    masters[iteration].save(tmp_path / "saved")
    same_files(tmp_path / "out", tmp_path / "saved")
    assert (exported.iteration, exported.checksum) == (iteration, masters[iteration].checksum())


def test_iteration_0_is_the_base_model(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out", iteration=0)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in mixed_tensors().items():
        assert torch.equal(written[name], tensor)
        if tensor.is_floating_point():
            assert torch.equal(torch.signbit(written[name]), torch.signbit(tensor))


@pytest.mark.parametrize("limit", [46_400, 1])
def test_shards_equal_those_of_the_saved_master(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", limit)
    masters = make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out")
    masters[-1].save(tmp_path / "saved")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    same_files(tmp_path / "out", tmp_path / "saved")


def test_a_sharded_base_is_read(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    sharded = tmp_path / "sharded"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_SHARD_BYTES", 46_400)
        masters[0].save(sharded)
    (sharded / "config.json").write_text("{}")
    export(tmp_path / "seeds.log", tmp_path / "out", base=sharded)
    masters[-1].save(tmp_path / "saved")
    same_files(tmp_path / "out", tmp_path / "saved")


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("stretch", [3, 1024, 10**9])
def test_threads_and_chunks_do_not_matter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, stretch: int
) -> None:
    small = {name: tensor.flatten()[:50].clone() for name, tensor in mixed_tensors().items()}
    save_file(small, base / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(tensor_files, "CHUNK", stretch)
    masters = make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out", threads=threads)
    masters[-1].save(tmp_path / "saved")
    same_files(tmp_path / "out", tmp_path / "saved")


def test_transformers_loads_the_export_and_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = make_tiny_model(tmp_path / "base", dtype="bfloat16")
    masters = make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = dict(masters[-1].perturbed(None, 0.0))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a").input_ids
    export(tmp_path / "seeds.log", tmp_path / "wide", dtype="float32")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto").dtype == torch.float32


def test_configuration_and_tokenizer_are_copied_and_a_new_type_is_declared(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out")
    names = ["README.md", "config.json", "esplug.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    export(tmp_path / "seeds.log", tmp_path / "wide", dtype="float32")
    config = json.loads((tmp_path / "wide" / "config.json").read_text(encoding="utf-8"))
    assert config == {"dtype": "float32", "text_config": {"torch_dtype": "float32"}, "name": "é"}


def test_a_torn_last_record_is_skipped_and_reported(base: Path, tmp_path: Path) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    log = tmp_path / "seeds.log"
    log.write_bytes(log.read_bytes()[:-3])
    exported = export(log, tmp_path / "out")
    assert (exported.iteration, exported.checksum, exported.torn) == (3, masters[3].checksum(), True)


def test_progress_reaches_the_total(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    seen: list[tuple[str, int, int]] = []
    export(tmp_path / "seeds.log", tmp_path / "out", progress=lambda *args: seen.append(args))
    for what in ("checking the base", "replaying"):
        done = [(done, total) for name, done, total in seen if name == what]
        assert done == sorted(done)
        assert done[-1][0] == done[-1][1] > 0
    assert [name for name, *_ in seen] == sorted(name for name, *_ in seen)


# --- what goes wrong -------------------------------------------------------------------------------------------


def nothing_written(tmp_path: Path) -> bool:
    return not any(path.name.lstrip(".").startswith("out") for path in tmp_path.iterdir())


def test_an_existing_folder_is_refused(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"^--out .*out: exists; [^\n]*$"):
        export(tmp_path / "seeds.log", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("iteration", "message"), [(5, "only 4 iterations in"), (-1, "must be 0 or more")])
def test_a_missing_iteration_is_refused(base: Path, tmp_path: Path, iteration: int, message: str) -> None:
    make_log(tmp_path / "seeds.log", base)
    with pytest.raises(UserError, match=rf"^--iteration {iteration}: [^\n]*{message}[^\n]*$"):
        export(tmp_path / "seeds.log", tmp_path / "out", iteration=iteration)
    assert nothing_written(tmp_path)


def test_another_base_model_is_refused_before_anything_is_replayed(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    tensors = mixed_tensors()
    tensors["embed"][700, 32] += 1
    save_file(tensors, base / "model.safetensors")
    phases: set[str] = set()
    with pytest.raises(UserError, match=r"^[^\n]*not the model that the run started from[^\n]*--base[^\n]*$"):
        export(tmp_path / "seeds.log", tmp_path / "out", progress=lambda what, *_: phases.add(what))
    assert phases == {"checking the base"}
    assert nothing_written(tmp_path)


def test_weights_with_a_wrong_checksum_are_not_written(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    with SeedLog.open(tmp_path / "seeds.log") as log:
        log.append(Step(4, (0.5,), False, 12345))
    with pytest.raises(RunError, match=r"^[^\n]*checksum [0-9a-f]{16} instead of 0000000000003039[^\n]*$"):
        export(tmp_path / "seeds.log", tmp_path / "out")
    assert nothing_written(tmp_path)
    assert export(tmp_path / "seeds.log", tmp_path / "out", iteration=4).iteration == 4


def test_a_moved_base_needs_the_base_option(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"the log's base model .*no such folder.*--base"):
        export(tmp_path / "seeds.log", tmp_path / "out")
    export(tmp_path / "seeds.log", tmp_path / "out", base=moved)
    with pytest.raises(UserError, match=r"--base /no/such: no such folder"):
        export(tmp_path / "seeds.log", tmp_path / "other", base="/no/such")


def test_a_base_from_the_hub_is_asked_for_at_its_revision(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "esplug.checkpoints.starting_model.model_folder", lambda name, flag, use: asked.append(name) or base
    )
    checksum = MasterWeights.load(base).checksum()
    for name in ("org/model", "org/model@main"):
        log = tmp_path / f"{len(asked)}.log"
        SeedLog.create(log, Header(Base(name, "a" * 40, checksum), "float32", 1)).close()
        export(log, tmp_path / f"model{len(asked)}")
    assert asked == ["org/model@" + "a" * 40] * 2


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3, dtype=torch.float64), "tensor w has type F64"),
        (torch.ones(3).to(torch.float8_e4m3fn), r"a quantised model \(FP8, tensor w\)"),
    ],
)
def test_types_that_cannot_be_updated_are_refused(
    base: Path, tmp_path: Path, tensor: torch.Tensor, message: str
) -> None:
    make_log(tmp_path / "seeds.log", base)
    save_file({"w": tensor}, base / "model.safetensors")
    with pytest.raises(UserError, match=message):
        export(tmp_path / "seeds.log", tmp_path / "out")


def test_a_damaged_base_is_one_line(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"^[^\n]*model.safetensors: missing or damaged"):
        export(tmp_path / "seeds.log", tmp_path / "out")
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"other": "model.safetensors"}}')
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"does not contain tensor other"):
        export(tmp_path / "seeds.log", tmp_path / "out")


def test_directories_without_a_log_and_wrong_types_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no seeds.log there"):
        export(base, tmp_path / "out")
    with pytest.raises(UserError, match=r"no.log: cannot be read"):
        export(tmp_path / "no.log", tmp_path / "out")
    with pytest.raises(UserError, match=r"--dtype int8: choose one of bfloat16, float16, float32"):
        export(tmp_path / "no.log", tmp_path / "out", dtype="int8")  # type: ignore[arg-type]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(tmp_path / "seeds.log", base)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match=r"^--out [^\n]*cannot be written \(No space left on device\)$"):
            export(tmp_path / "seeds.log", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"^--out [^\n]*: needs 0.0 GB, and 0.0 GB are free"):
            export(tmp_path / "seeds.log", tmp_path / "deep" / "out")
    assert nothing_written(tmp_path)
    assert not any(thread.name.startswith("esplug-replay") for thread in threading.enumerate())


def test_an_interrupt_stops_the_threads_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(tmp_path / "seeds.log", base)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "replaying" and done > total // 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "CHUNK", 1000)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "seeds.log", tmp_path / "out", progress=interrupt)
    assert nothing_written(tmp_path)
    assert not any(thread.name.startswith("esplug-replay") for thread in threading.enumerate())


# --- memory ----------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
from esplug.checkpoints.export import export
export(Path(sys.argv[1]), Path(sys.argv[2]), threads=2)
# Not ru_maxrss: it counts what the process was before exec, which is pytest.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def peak_kib(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "config.json").write_text("{}")
    save_file(
        {name: torch.full(shape, 0.5).bfloat16() for name, shape in shapes.items()},
        folder / "base" / "model.safetensors",
    )
    master = MasterWeights.load(folder / "base", threads=2)
    header = Header(Base(str(folder / "base"), None, master.checksum()), "float32", 1)
    with SeedLog.create(folder / "seeds.log", header) as log:
        step = Step(0, (0.1, -0.2), False, 0)
        master.update(step.seeds(1), step.coefficients)
        log.append(Step(0, step.coefficients, False, master.checksum()))
    command = [sys.executable, "-c", MEASURE, str(folder / "seeds.log"), str(folder / "out")]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_is_bounded_whatever_the_models_size(tmp_path: Path) -> None:
    baseline = peak_kib(tmp_path / "small", {"w": (8, 8)})
    shapes = {"embed": (40_960, 1024), **{f"layers.{i}.w": (4096, 1024) for i in range(28)}}
    sizes = [math.prod(shape) for shape in shapes.values()]
    grown = (peak_kib(tmp_path / "large", shapes) - baseline) * 1024
    print(f"baseline {baseline >> 10} MiB, grown by {grown >> 20} MiB; model {sum(sizes) * 2 >> 20} MiB")
    assert grown < max(sizes) * 4 < sum(sizes) * 2, "not even the largest tensor in float32"

"""Models made from a seed log: the same bytes as those of the run, in little memory, complete or not at all."""

import json
import math
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import esplug.checkpoints.export as export_module
from esplug.checkpoints import safetensors_shards as shards
from esplug.checkpoints import tensor_files as stored_tensors
from esplug.checkpoints.export import export
from esplug.checkpoints.seed_log import Base, Header, SeedLog, Step, movement
from esplug.cli.export import export as export_command
from esplug.config import make_config
from esplug.data.splits import EvaluationSplit
from esplug.errors import RunError, UserError
from esplug.evaluation.figures import Evaluation, Sample, SplitEvaluation
from esplug.planning.placement import Plan
from esplug.runs.directory import RunDirectory
from esplug.runs.results_json import results
from esplug.weights.master import MasterWeights
from tests.helpers.tiny import make_tiny_model

COEFFICIENTS = [(0.01, -0.02, 0.005, 0.003), (0.0, -0.0, 0.0, 0.0), (1e-4, 2e-3, -5e-3, 1e-3), (0.02, 0.0, 0.01, -0.01)]


def mixed_tensors() -> dict[str, torch.Tensor]:
    """Every kind that a checkpoint may hold; sizes beside those of stretches and Philox blocks; -0.0."""
    generator = torch.Generator().manual_seed(3)
    made = {
        "embed": torch.randn(701, 33, generator=generator).bfloat16(),
        "layers.0.w": torch.randn(7, 5, 3, generator=generator).half(),
        'layers.1 "é"': torch.randn(1013, generator=generator),
        "zeros": torch.tensor([0.0, -0.0, 0.0, -0.0, -0.0]).bfloat16(),
        "empty": torch.empty(0, 4).bfloat16(),
        "scalar": torch.tensor(0.3),
        "layers.1.proj.weight": torch.randn(61, 37, generator=generator).bfloat16(),
        "steps": torch.arange(3001),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    return dict(sorted(made.items()))


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


def make_log(
    path: Path,
    base: Path,
    *,
    master_dtype: Any = "float32",
    antithetic: bool = True,
    settings: Any = None,
    name: str | None = None,
    revision: str | None = None,
    momentum: float = 0.0,
    low_rank: int | None = None,
) -> list[MasterWeights]:
    """Write the log that a run on ``base`` would have written. Returns the master after each iteration, from 0."""

    def master(upto: int) -> MasterWeights:
        weights = MasterWeights.load(base, master_dtype, low_rank=low_rank)
        for done in range(1, upto + 1):
            seeds, coefficients = movement(steps[:done], 11)
            weights.update(seeds, coefficients)
        return weights

    steps: list[Step] = []
    first = MasterWeights.load(base, master_dtype)
    header = Header(Base(name or str(base), revision, first.checksum()), master_dtype, 11, settings or {}, low_rank)
    masters = [first]
    with SeedLog.create(path, header) as log:
        for number, coefficients in enumerate(COEFFICIENTS):
            steps.append(Step(number, coefficients, antithetic, 0, momentum))
            masters.append(master(number + 1))
            steps[-1] = replace(steps[-1], checksum=masters[-1].checksum())
            log.append(steps[-1])
    return masters


def same_files(left: Path, right: Path) -> None:
    """Compare weight files byte for byte."""
    names = sorted(file.name for file in right.glob("*.safetensors*"))
    assert sorted(file.name for file in left.glob("*.safetensors*")) == names
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


@pytest.mark.parametrize("master_dtype", ["float32", "model"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "how", [{"antithetic": False}, {"antithetic": True}, {"momentum": 0.4}, {"low_rank": 3, "momentum": 0.1}], ids=str
)
def test_it_is_byte_for_byte_what_the_run_would_have_saved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, master_dtype: str, dtype: Any, how: dict[str, Any]
) -> None:
    monkeypatch.setattr(stored_tensors, "STRETCH", 1021)
    masters = make_log(tmp_path / "seeds.log", base, master_dtype=master_dtype, **how)
    exported = export(tmp_path / "seeds.log", tmp_path / "out", dtype=dtype, threads=3)
    masters[-1].save(tmp_path / "saved", getattr(torch, dtype) if dtype else None)
    same_files(tmp_path / "out", tmp_path / "saved")
    assert exported.folder == tmp_path / "out"
    assert (exported.iteration, exported.checksum, exported.torn) == (4, masters[-1].checksum(), False)
    assert exported.nbytes == sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())


@pytest.mark.parametrize("iteration", range(5))
def test_every_iteration_can_be_had(base: Path, tmp_path: Path, iteration: int) -> None:
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
def test_shards_are_those_of_the_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", limit)
    masters = make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out")
    masters[-1].save(tmp_path / "saved")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    same_files(tmp_path / "out", tmp_path / "saved")
    again = export(tmp_path / "seeds.log", tmp_path / "again", base=tmp_path / "base", iteration=4)
    assert again.checksum == masters[-1].checksum()


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
def test_threads_and_stretches_do_not_matter(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, stretch: int
) -> None:
    small = {name: tensor.flatten()[:50].clone() for name, tensor in mixed_tensors().items()}
    save_file(small, base / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(stored_tensors, "STRETCH", stretch)
    masters = make_log(tmp_path / "seeds.log", base)
    export(tmp_path / "seeds.log", tmp_path / "out", threads=threads)
    masters[-1].save(tmp_path / "saved")
    same_files(tmp_path / "out", tmp_path / "saved")


def test_transformers_opens_it_and_the_tokenizer_comes_along(tmp_path: Path) -> None:
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


def test_a_torn_last_record_is_left_out_and_said(base: Path, tmp_path: Path) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    log = tmp_path / "seeds.log"
    log.write_bytes(log.read_bytes()[:-3])
    exported = export(log, tmp_path / "out")
    assert (exported.iteration, exported.checksum, exported.torn) == (3, masters[3].checksum(), True)


def test_progress_goes_from_nothing_to_all(base: Path, tmp_path: Path) -> None:
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
def test_an_iteration_that_is_not_there_is_refused(base: Path, tmp_path: Path, iteration: int, message: str) -> None:
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


def test_weights_that_are_not_the_runs_are_not_written(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    with SeedLog.open(tmp_path / "seeds.log") as log:
        log.append(Step(4, (0.5,), False, 12345))
    with pytest.raises(RunError, match=r"^[^\n]*checksum [0-9a-f]{16} instead of 0000000000003039[^\n]*$"):
        export(tmp_path / "seeds.log", tmp_path / "out")
    assert nothing_written(tmp_path)
    assert export(tmp_path / "seeds.log", tmp_path / "out", iteration=4).iteration == 4


def test_a_base_that_moved_is_found_with_the_option(base: Path, tmp_path: Path) -> None:
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
    monkeypatch.setattr("esplug.checkpoints.starting_model.model_folder", lambda name, flag: asked.append(name) or base)
    checksum = MasterWeights.load(base).checksum()
    for name in ("org/model", "org/model@main"):
        log = tmp_path / f"{len(asked)}.log"
        SeedLog.create(log, Header(Base(name, "a" * 40, checksum), "float32", 1)).close()
        export(log, tmp_path / f"model{len(asked)}")
    assert asked == ["org/model@" + "a" * 40] * 2


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(torch.ones(3, dtype=torch.float64), "F64"), (torch.ones(3).to(torch.float8_e4m3fn), "F8_E4M3")],
)
def test_types_that_cannot_be_updated_are_refused(
    base: Path, tmp_path: Path, tensor: torch.Tensor, message: str
) -> None:
    make_log(tmp_path / "seeds.log", base)
    save_file({"w": tensor}, base / "model.safetensors")
    with pytest.raises(UserError, match=rf"tensor w has type {message}"):
        export(tmp_path / "seeds.log", tmp_path / "out")


def test_a_damaged_base_is_one_line(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"^[^\n]*model.safetensors: missing or damaged"):
        export(tmp_path / "seeds.log", tmp_path / "out")
    (base / "model.safetensors.index.json").write_text('{"weight_map": {"other": "model.safetensors"}}')
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"tensor other is missing"):
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
        patch.setattr(export_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
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

    monkeypatch.setattr(stored_tensors, "STRETCH", 1000)
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


# --- the model card --------------------------------------------------------------------------------------------

SETTINGS = {
    "task": "countdown",
    "model_name": "org/model@main",
    "train_dataset": "/home/someone/data/train.json",
    "eval_dataset": "/home/someone/a,org/data:config",
    "task_options": {"api_key": "hush", "path": "~/things/words.txt", "shots": 1},
    "sigma": 0.002,
    "population_size": 4,
    "antithetic": True,
    "stop": ["/answer", "a,b"],
    "output_directory": "/home/someone/experiments",
    "ray_address": "ray://secret-host:10001",
    "experiment_name": "mine",
    "wandb_project": "private",
}
PRIVATE = re.compile(r"/home|someone|hush|secret-host|~/|private|experiments/")


def make_run(path: Path, base: Path) -> Path:
    """Make a run's directory as the trainer leaves it: evaluations before, at iteration 2 and after."""
    config = make_config(SETTINGS | {"eval_n_samples": 2, "eval_temperature": 0.5, "pass_k": [1, 2]})
    run = RunDirectory(path)
    path.mkdir()
    (path / "config.toml").write_text(config.to_toml())
    make_log(path / "seeds.log", base, settings=config.model_dump(exclude_none=True))
    for iteration, passing in ((0, 1), (2, 2), (4, 3)):
        samples = [
            Sample(
                "test|split", row, n, "q", "t", "out", float(row < passing), "", row < passing, row < passing, 5, True
            )
            for row in range(4)
            for n in range(2)
        ]
        split = SplitEvaluation("test|split", samples, (1, 2))
        run.write_evaluation(split.split, iteration, split.record(iteration))
        asked = {"test|split": EvaluationSplit(["q"] * 4, [[1]] * 4, ["t"] * 4)}
        run.write_results(results(config, base, 5, Plan(1, "cpu", 0, 1), asked, Evaluation(iteration, [split], 1.0)))
    return path


def front_matter(card: str) -> dict[str, Any]:
    import yaml

    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def card_of(run: Path, out: Path, **options: Any) -> str:
    return (export(run, out, **options).folder / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_it_is_and_how_good(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    card = card_of(run, tmp_path / "out")
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["evolution-strategies", "esplug"],
        "license": "apache-2.0",
    }
    assert "base model's own card" not in card
    checksum = MasterWeights.load(base)
    for number, coefficients in enumerate(COEFFICIENTS):
        if any(coefficients):
            checksum.update(Step(number, coefficients, True, 0).seeds(11), coefficients)
    assert f"`{checksum.checksum():016x}`" in card
    for text in ("| sigma | 0.002 |", "| population size | 4 |", "| task | `countdown` |", "| mirrored pairs | yes |"):
        assert text in card
    assert "| training data | `train.json` |" in card
    assert "| evaluation data | `a,org/data:config` |" in card
    assert "| split | figure | prompts | base model | iteration 4 |" in card
    assert re.search(
        r"\| test\\\|split \| pass@1 \| 4 \| 0\.250 \[0\.\d+, 0\.\d+\] \| 0\.750 \[0\.\d+, 0\.\d+\] \|", card
    )
    assert "reward |" not in card, "it says the same as pass@1"
    assert "esplug export seeds.log --out model --iteration 4 --base base\n" in card


@pytest.mark.parametrize(
    "name", ["org/model", "org/model@main", "/home/someone/hub/models--org--model/snapshots/" + "a" * 40]
)
def test_the_card_names_a_base_from_the_hub_as_the_hub_does(base: Path, tmp_path: Path, name: str) -> None:
    make_log(tmp_path / "seeds.log", base, name=name, revision="a" * 40)
    card = card_of(tmp_path / "seeds.log", tmp_path / "out", base=base)
    assert front_matter(card)["base_model"] == "org/model"
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert f"| base model | `org/model`, revision `{'a' * 40}` |" in card
    assert "esplug export seeds.log --out model --iteration 4\n" in card
    assert not PRIVATE.search(card)


def test_a_folder_that_looks_like_an_id_is_not_called_one(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base, name="models/tiny")
    card = card_of(tmp_path / "seeds.log", tmp_path / "out", base=base)
    assert "base_model" not in front_matter(card)
    assert "--base models/tiny\n" in card


def test_the_card_of_an_earlier_iteration_has_its_figures(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    card = card_of(run, tmp_path / "out", iteration=3, dtype="float32")
    assert "| base model | iteration 2 |" in card
    assert "| 0.500 [" in card
    assert "--iteration 3 --dtype float32 --base base\n" in card
    card = card_of(run, tmp_path / "none", iteration=0)
    assert "| split | figure | prompts | base model |" in card


def test_the_card_holds_nothing_private(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    for source, out in ((run, "a"), (run / "seeds.log", "b")):
        card = card_of(source, tmp_path / out)
        assert not PRIVATE.search(card), PRIVATE.search(card)
        assert str(tmp_path) not in card
        assert os.uname().nodename not in card


def test_the_cards_settings_are_a_configuration(base: Path, tmp_path: Path) -> None:
    import tomllib

    card = card_of(make_run(tmp_path / "run", base), tmp_path / "out")
    settings = tomllib.loads(card.split("```toml\n")[1].split("```")[0])
    assert make_config(settings).stop == ["/answer", "a,b"]
    assert settings["task_options"] == {"path": "words.txt", "shots": 1}
    assert settings["sigma"] == 0.002


def test_a_log_alone_or_a_poor_run_directory_gives_a_card_too(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    assert "## Evaluation" not in card_of(run / "seeds.log", tmp_path / "a")
    (run / "results.json").write_text("{broken")
    (run / "config.toml").write_text("= broken")
    (run / "eval-output" / "model_eval_taskx_iteration4.json").write_text("{broken")
    card = card_of(run, tmp_path / "b")
    assert "| 0.750 [" in card
    make_log(tmp_path / "bare.log", base)
    card = card_of(tmp_path / "bare.log", tmp_path / "c")
    assert "base_model" not in front_matter(card)
    assert str(tmp_path) not in card


def test_only_the_head_of_an_evaluations_file_is_read(base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", base)
    for file in (run / "eval-output").iterdir():
        text = file.read_text()
        assert text.index('"samples":') < 2**20
        file.write_text(text[: text.index('"samples":') + 20] + "x" * 2**21)
    assert "| 0.750 [" in card_of(run, tmp_path / "out")


# --- the command -----------------------------------------------------------------------------------------------

app = typer.Typer()
app.command()(export_command)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_writes_and_says_what(base: Path, tmp_path: Path) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--iteration", 3, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert f"checksum {masters[3].checksum():016x}" in result.output
    assert str(tmp_path / "out") in result.output.replace("\n", "")
    masters[3].save(tmp_path / "saved", torch.float32)
    same_files(tmp_path / "out", tmp_path / "saved")


def test_the_command_takes_a_base_and_reports_a_torn_log(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    (tmp_path / "seeds.log").write_bytes((tmp_path / "seeds.log").read_bytes()[:-1])
    moved = base.rename(tmp_path / "moved")
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--base", moved)
    assert "last record is torn" in result.output
    assert "iteration      3" in result.output
    assert isinstance(invoke(tmp_path / "seeds.log", "--out", tmp_path / "out").exception, UserError)


def test_out_is_required(tmp_path: Path) -> None:
    assert invoke(tmp_path / "seeds.log").exit_code == 2


class FakeApi:
    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012 (shared on purpose)
    error: Exception | None = None

    def create_repo(self, repo: str, **options: Any) -> SimpleNamespace:
        if self.error:
            raise self.error
        self.calls.append((repo, options))
        return SimpleNamespace(repo_id=f"me/{repo}")

    def upload_folder(self, **options: Any) -> None:
        assert (Path(options["folder_path"]) / "model.safetensors").is_file()
        self.calls.append(("upload", options))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "calls", [])
    return FakeApi


def test_the_folder_is_uploaded(base: Path, tmp_path: Path, hub: type[FakeApi]) -> None:
    masters = make_log(tmp_path / "seeds.log", base)
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "tuned")
    assert result.exit_code == 0, result.output
    assert hub.calls[0] == ("tuned", {"exist_ok": True})
    upload = hub.calls[1][1]
    assert (upload["repo_id"], upload["folder_path"]) == ("me/tuned", tmp_path / "out")
    assert f"{masters[-1].checksum():016x}" in upload["commit_message"]
    assert "https://huggingface.co/me/tuned" in result.output


def test_a_hub_that_refuses_is_one_line_and_the_folder_stays(
    base: Path, tmp_path: Path, hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_log(tmp_path / "seeds.log", base)
    monkeypatch.setattr(hub, "error", ConnectionError("out of reach\nwith details"))
    result = invoke(tmp_path / "seeds.log", "--out", tmp_path / "out", "--push-to-hub", "me/tuned")
    assert isinstance(result.exception, UserError)
    message = str(result.exception)
    assert message.startswith("--push-to-hub me/tuned: not uploaded (ConnectionError: out of reach); ")
    assert "hf auth login" in message
    assert "\n" not in message
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_a_token_the_real_library_gives_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    make_log(tmp_path / "seeds.log", base)
    script = (
        "import sys; from pathlib import Path; from esplug.errors import UserError\n"
        "from esplug.checkpoints.replayed_model import Exported; from esplug.cli.export import push\n"
        "try: push(Exported(Path(sys.argv[1]), 1, 2, 3, False), 'me/tuned')\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script, str(base)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("--push-to-hub me/tuned: not uploaded ("), done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_the_module_of_the_command_loads_nothing_heavy() -> None:
    script = (
        "import sys, esplug.cli.export, esplug.checkpoints.seed_log\n"
        "print([m for m in ('torch', 'numba', 'vllm', 'ray', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exporting_needs_neither_vllm_nor_ray(base: Path, tmp_path: Path) -> None:
    make_log(tmp_path / "seeds.log", base)
    script = (
        "import sys; sys.modules['vllm'] = sys.modules['ray'] = None\n"
        "from pathlib import Path; from esplug.checkpoints.export import export\n"
        "export(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "seeds.log"), str(tmp_path / "out")], check=True, timeout=300
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()

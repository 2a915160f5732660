"""Master weights: reading, perturbing, updating, checksums, writing."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import esplug.weights.master as weights_module
from esplug.checkpoints import safetensors_shards as shards
from esplug.checkpoints.safetensors_shards import read_tensors
from esplug.errors import UserError
from esplug.noise.full_rank import eps
from esplug.weights import stream
from esplug.weights.master import MasterWeights
from esplug.weights.partition import TensorBlock

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    made = {
        "embed": torch.randn(701, 33, generator=generator),
        "layers.0.w": torch.randn(7, 5, 3, generator=generator),
        "layers.1.w": torch.randn(7, 5, 3, generator=generator),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(0.3),
        "norm": torch.ones(33),
    }
    return {name: tensor.to(dtype) for name, tensor in made.items()} | {"steps": torch.tensor([3, 4])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split work so that tensors share chunks, and chunks begin in the middle of tensors and Philox blocks."""
    monkeypatch.setattr(weights_module, "_CHUNK_ELEMENTS", {"cpu": 1013})
    monkeypatch.setattr(stream, "_LOOKAHEAD_BYTES", 5000)


def reference(tensor: torch.Tensor, name: str, seed: int, scale: float, dtype: torch.dtype) -> torch.Tensor:
    noise = eps(seed, name, 0, tensor.numel()).view(tensor.shape)
    return (tensor.float() + torch.tensor(scale) * noise).to(dtype)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("dtype", [*FLOATS, None])
@pytest.mark.parametrize("master_dtype", ["float32", "model"])
@pytest.mark.usefixtures("small_chunks")
def test_perturbed_equals_the_reference(stored: torch.dtype, dtype: torch.dtype | None, master_dtype: str) -> None:
    checkpoint = tensors(stored)
    master = MasterWeights(checkpoint.items(), master_dtype, threads=2)  # type: ignore[arg-type]
    member = dict(master.perturbed(5, -0.01, dtype))
    assert list(member) == list(checkpoint) == master.names
    for name, tensor in checkpoint.items():
        if name == "steps":
            assert torch.equal(member[name], tensor)
            continue
        expected = reference(tensor, name, 5, -0.01, dtype or stored)
        assert member[name].dtype == expected.dtype
        assert torch.equal(member[name], expected), name


def test_perturbed_without_seed_or_scale_is_the_master(folder: Path) -> None:
    master = MasterWeights.load(folder)
    assert same(dict(master.perturbed(None, 0.5)), tensors())
    assert same(dict(master.perturbed(3, 0.0)), tensors())
    assert same(dict(master.perturbed(None, 0.0, torch.bfloat16)), tensors())


def test_properties(folder: Path) -> None:
    master = MasterWeights.load(folder)
    floats = 701 * 33 + 2 * 105 + 1 + 33
    assert master.nbytes == floats * 4 + 16
    assert MasterWeights.load(folder, "model").nbytes == floats * 2 + 16
    assert master.shapes["layers.0.w"] == (7, 5, 3)
    assert master.shapes["scalar"] == ()
    assert master.dtypes["embed"] == torch.bfloat16
    assert master["embed"].dtype == torch.float32
    assert torch.equal(master["embed"], tensors()["embed"].float())


def test_perturbed_returns_new_tensors_and_keeps_the_master(folder: Path) -> None:
    master = MasterWeights.load(folder, threads=2)
    before = master.checksum()
    members = [dict(master.perturbed(seed, 0.02, torch.float32)) for seed in range(4)]
    for tensor in members[0].values():
        tensor.zero_()
    for tensor in dict(master.perturbed(None, 0.0, torch.float32)).values():
        tensor.zero_()
    assert master.checksum() == before
    assert same(dict(master.perturbed(1, 0.02, torch.float32)), members[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(heights=st.lists(st.integers(0, 9), min_size=1, max_size=5), width=st.integers(0, 300), data=st.data())
def test_fused_tensors_are_concatenations(small_chunks: None, heights: list[int], width: int, data: Any) -> None:
    master = MasterWeights(
        ((f"t{i}", torch.arange(rows * width).reshape(rows, width).float()) for i, rows in enumerate(heights)),
        threads=2,
    )
    order = data.draw(st.permutations(master.names))
    cut = data.draw(st.integers(0, len(order) - 1))
    groups = {"first": tuple(order[:cut]), "rest": tuple(order[cut:])}
    layout = master.fused({name: parts for name, parts in groups.items() if parts})
    alone = dict(master.perturbed(3, 0.1, torch.bfloat16))
    for name, tensor in master.perturbed(3, 0.1, torch.bfloat16, layout):
        assert torch.equal(tensor, torch.cat([alone[part] for part in groups[name]]))


class Pair:
    """Ranks 0 and 1 of a group, as two threads."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2), [None, None]

    def rank(self, number: int) -> Any:
        pair = self

        class Rank:
            rank = number

            def sums(self, values: list[int]) -> list[int]:
                return [sum(each) % 2**64 for each in zip(*pair.exchange(number, values), strict=True)]

            def join(self, tensor: torch.Tensor) -> None:
                both = pair.exchange(number, tensor.clone())
                tensor.view(-1).view(torch.uint8).copy_(sum(each.view(-1).view(torch.uint8) for each in both))

        return Rank()

    def exchange(self, number: int, value: Any) -> list[Any]:
        self.given[number] = value
        self.barrier.wait(10)
        both = list(self.given)
        self.barrier.wait(10)
        return both


BLOCKS = {  # of each process
    "embed": [TensorBlock((0, 350), (0, 33)), TensorBlock((350, 701), (0, 33))],
    "layers.0.w": [TensorBlock((0, 7), (0, 8)), TensorBlock((0, 7), (8, 15))],
    "layers.1.w": [TensorBlock((0, 7), (0, 15)), TensorBlock((0, 7), (0, 15), counted=False)],
    "norm": [TensorBlock((0, 20), (0, 1)), TensorBlock((20, 33), (0, 1))],
}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("master_dtype", ["float32", "model"])
def test_two_ranks_with_blocks_equal_one_with_whole_tensors(folder: Path, tmp_path: Path, master_dtype: str) -> None:
    whole, pair = MasterWeights.load(folder, master_dtype, threads=2), Pair()  # type: ignore[arg-type]

    def work(number: int) -> tuple[Any, ...]:
        blocks = {name: parts[number] for name, parts in BLOCKS.items()}
        ranks = pair.rank(number)
        part = MasterWeights.load(folder, master_dtype, threads=2, blocks=blocks, ranks=ranks)  # type: ignore[arg-type]
        member = dict(part.perturbed(7, 0.1, torch.bfloat16))
        before = part.checksum()
        part.update([3, 4], [0.5, -0.25])
        part.save(tmp_path / "saved", exact=True)
        return member, before, part.tensor_checksums(), part.undefined(), part.nbytes

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    expected = dict(whole.perturbed(7, 0.1, torch.bfloat16))
    for name, tensor in expected.items():
        for number, member in enumerate((first[0], second[0])):
            block = BLOCKS.get(name, [None, None])[number]
            cut = (
                tensor if block is None else tensor.reshape(len(tensor), -1)[slice(*block.rows), slice(*block.columns)]
            )
            assert torch.equal(member[name].flatten(), cut.flatten()), name
    assert first[1] == second[1] == whole.checksum()
    whole.update([3, 4], [0.5, -0.25])
    assert first[2] == second[2] == whole.tensor_checksums()
    assert first[3] == second[3] == []
    assert first[4] + second[4] < 1.1 * whole.nbytes
    assert same(dict(read_tensors(tmp_path / "saved")), {name: whole[name] for name in whole.names})


def test_tensors_of_other_shapes_are_not_fused() -> None:
    master = MasterWeights(
        [("a", torch.zeros(2, 3)), ("b", torch.zeros(2, 4)), ("c", torch.zeros(())), ("d", torch.zeros(()))]
    )
    for pair in (("a", "b"), ("c", "d"), ("a", "c")):
        with pytest.raises(ValueError, match="fit together"):
            master.fused({"all": pair})
    with pytest.raises(KeyError):
        master.fused({"all": ("a", "e")})


def test_iteration_can_be_abandoned(small_chunks: None) -> None:
    master = MasterWeights(tensors().items(), threads=2)
    expected = dict(master.perturbed(1, 0.1))
    stream = master.perturbed(2, 0.1)
    next(stream)
    stream.close()
    assert same(dict(master.perturbed(1, 0.1)), expected)


def test_error_in_a_kernel_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from esplug.noise.kernels import cpu

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(cpu, "perturb", fail)
    with pytest.raises(MemoryError, match="no room"):
        dict(MasterWeights(tensors().items()).perturbed(1, 0.1))


def test_look_ahead_is_bounded(small_chunks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    empty = torch.empty
    master = MasterWeights(((f"t{i}", torch.zeros(500)) for i in range(100)), threads=2)
    monkeypatch.setattr(torch, "empty", lambda *a, **k: made.append(1) or empty(*a, **k))
    stream = master.perturbed(1, 0.1, torch.float32)
    for taken in range(1, 101):
        next(stream)
        assert len(made) <= min(100, taken + 5000 // 2000 + 4)
    assert sum(made) == 100


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("master_dtype", ["float32", "model"])
def test_update_equals_the_reference(folder: Path, master_dtype: str) -> None:
    master = MasterWeights.load(folder, master_dtype, threads=2)  # type: ignore[arg-type]
    seeds, coefficients = [11, 2**64 - 1, 0], [0.01, -0.003, 0.25]
    master.update(seeds, coefficients)
    for name, tensor in tensors().items():
        if name == "steps":
            assert torch.equal(master[name], tensor)
            continue
        total = torch.zeros(tensor.shape)
        for seed, coefficient in zip(seeds, coefficients, strict=True):
            total = total + torch.tensor(coefficient) * eps(seed, name, 0, tensor.numel()).view(tensor.shape)
        expected = (tensor.float() + total).to(master[name].dtype)
        assert torch.equal(master[name], expected), name


def test_results_do_not_depend_on_threads_cores_or_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(threads: int, chunk: int) -> tuple[dict[str, torch.Tensor], int]:
        monkeypatch.setattr(weights_module, "_CHUNK_ELEMENTS", {"cpu": chunk})
        cores = sorted(os.sched_getaffinity(0))[:1] if threads == 3 else None
        master = MasterWeights.load(folder, threads=threads, cores=cores)
        master.update([1, 2], [0.1, 0.2])
        return dict(master.perturbed(9, 0.1)), master.checksum()

    weights, checksum = outcome(1, 2**20)
    for threads, chunk in [(1, 5), (2, 997), (3, 4096), (2, 10**9)]:
        others, other_checksum = outcome(threads, chunk)
        assert other_checksum == checksum
        assert same(others, weights)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no such setting here")
def test_threads_are_pinned_but_not_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    core = max(mine)
    master = MasterWeights([("w", torch.ones(3))], threads=2, cores=[core])
    seen: list[tuple[set[int], int]] = []
    monkeypatch.setattr(
        "esplug.noise.kernels.cpu.checksum",
        lambda *_: seen.append((os.sched_getaffinity(0), threading.get_ident())) or 0,
    )
    master.checksum()
    assert seen[0][0] == {core}
    assert seen[0][1] != threading.get_ident()
    assert os.sched_getaffinity(0) == mine


def test_checksum_depends_on_values_and_names_but_not_order(folder: Path) -> None:
    base = MasterWeights(tensors().items()).checksum()
    assert MasterWeights.load(folder).checksum() == base
    assert MasterWeights(reversed(tensors().items())).checksum() == base
    swapped = tensors()
    swapped["layers.0.w"], swapped["layers.1.w"] = swapped["layers.1.w"], swapped["layers.0.w"]
    assert MasterWeights(swapped.items()).checksum() != base
    master = MasterWeights.load(folder)
    master.update([], [])
    assert master.checksum() == base
    master.update([1], [1e-6])
    assert master.checksum() != base


@pytest.mark.parametrize("limit", [5 * 10**9, 46_400, 1])
def test_save_and_load(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", limit)
    master = MasterWeights.load(folder, threads=2)
    master.update([1], [0.1])
    target = tmp_path / "deep" / "out"
    master.save(target)
    assert same(dict(MasterWeights.load(target).perturbed(None, 0.0)), dict(master.perturbed(None, 0.0)))
    files = sorted(target.glob("*.safetensors"))
    assert len(files) == {5 * 10**9: 1, 46_400: 2, 1: 7}[limit]
    with safe_open(files[0], framework="pt") as content:
        assert content.metadata() == {"format": "pt"}
    if limit < 10**9:
        index = json.loads((target / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for f in files for t in load_file(f).values())
        assert set(index["weight_map"]) == set(master.names)
        assert files[0].name == f"model-00001-of-0000{len(files)}.safetensors"


def test_float32_save_keeps_every_bit(folder: Path, tmp_path: Path) -> None:
    master = MasterWeights.load(folder)
    master.update([1], [1e-5])
    master.save(tmp_path / "out", torch.float32)
    assert MasterWeights.load(tmp_path / "out").checksum() == master.checksum()


def test_saving_next_to_other_safetensors_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="empty folder"):
        MasterWeights.load(folder).save(folder)


def test_index_decides_which_file_counts(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-2.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
    with pytest.raises(UserError, match=r"tensor \w is in .* and in"):
        MasterWeights.load(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    master = MasterWeights.load(tmp_path)
    assert master.names == ["a", "b"]
    assert all(torch.equal(master[name], torch.ones(2)) for name in "ab")
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-2.safetensors: missing or damaged"):
        MasterWeights.load(tmp_path)


def test_all_files_are_read_without_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "y.safetensors")
    assert MasterWeights.load(tmp_path).names == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("pytorch_model.bin", b"", r"only pytorch_model.bin there; .*save_pretrained"),
        ("model.pth", b"", r"only model.pth there"),
        ("config.json", b"{}", r"no weights there"),
        ("model.safetensors", b"nonsense", r"model.safetensors: missing or damaged"),
        ("model.safetensors.index.json", b"{}", r"not a safetensors index"),
        ("model.safetensors.index.json", b'{"weight_map": [1]}', r"not a safetensors index"),
    ],
)
def test_unreadable_folders_are_refused(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        MasterWeights.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_unsupported_types_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"tensor w has type float.*bfloat16"):
        MasterWeights([("w", torch.ones(3).to(dtype))])


def test_wrong_arguments_are_refused_and_change_nothing() -> None:
    master = MasterWeights(tensors().items())
    before = master.checksum()
    for seeds, coefficients in [
        ([1], [0.1, 0.2]),
        ([1, -1], [0.1, 0.2]),
        ([2**64], [0.1]),
        ([1, 2], [0.1, float("nan")]),
        ([1], [float("inf")]),
        ([1], [1e39]),
    ]:
        with pytest.raises(ValueError, match=r"coefficient|seed"):
            master.update(seeds, coefficients)
    assert master.checksum() == before
    with pytest.raises(ValueError, match="scale"):
        master.perturbed(1, float("nan"))
    with pytest.raises(ValueError, match="member seed"):
        master.perturbed(-1, 0.1)
    with pytest.raises(ValueError, match="float64"):
        master.perturbed(1, 0.1, torch.float64)
    with pytest.raises(ValueError, match="comes twice"):
        MasterWeights([("w", torch.ones(1)), ("w", torch.ones(1))])
    with pytest.raises(ValueError, match="max_workers"):
        MasterWeights([], threads=0)


def test_any_memory_layout_is_accepted(tmp_path: Path) -> None:
    grid = torch.arange(12.0).view(3, 4)
    master = MasterWeights([("t", grid.t()), ("strided", grid[:, ::2]), ("grad", torch.ones(2, requires_grad=True))])
    grid.zero_()
    assert master["t"].tolist() == torch.arange(12.0).view(3, 4).t().tolist()
    assert master["strided"].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert master["t"].is_contiguous()
    with torch.inference_mode():
        member = dict(master.perturbed(4, 0.5))
    assert torch.equal(member["t"], reference(master["t"], "t", 4, 0.5, torch.float32))
    master.save(tmp_path / "out")


def test_noise_threads_start_no_openmp_threads() -> None:
    """If a process has more OpenMP threads than cores, they stop spinning, and vLLM becomes slow on several cores."""
    script = """
        import os, torch
        from esplug.weights.master import MasterWeights

        torch.set_num_threads(2)
        torch.ones(2**21).sum()  # the main thread's team
        before = len(os.listdir("/proc/self/task"))
        weights = MasterWeights([("a", torch.ones(2**22))], threads=2)
        list(weights.perturbed(1, 0.1, torch.bfloat16))
        weights.update([1], [0.1])
        print(weights.checksum(), weights.undefined(), len(os.listdir("/proc/self/task")) - before)
    """
    done = subprocess.run([sys.executable, "-c", dedent(script)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) <= 2

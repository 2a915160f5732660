"""GPU kernels, in Triton's interpreter, against the CPU kernels, bit for bit."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.noise.full_rank import tensor_key
from esplug.noise.kernels import cpu
from esplug.weights import master as weights
from esplug.weights.master import MasterWeights
from esplug.weights.partition import TensorBlock
from esplug.weights.prepared import PreparedWrites
from tests.helpers.amount import amount

CASES = amount(24, 60)  # benchmarks/gpu runs more
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def cuda(interpreted):
    return interpreted("esplug.noise.kernels.cuda")


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    return left.dtype == right.dtype and torch.equal(left.contiguous().view(bits), right.contiguous().view(bits))


def draw(choose: random.Random) -> tuple[int, int, int, int]:
    """Choose a block's rows and columns, and its first element and the row length in the whole tensor."""
    rows, columns = choose.choice([(1, choose.randint(1, 3000)), (choose.randint(1, 5), choose.randint(1, 40))])
    pitch = columns + choose.choice([0, 1, 2, 3, choose.randint(0, 999), 2**31 + choose.randint(0, 9)])
    first = choose.choice([0, choose.randint(0, 9), choose.randint(2**31 - 9, 2**34 + 9), choose.randint(0, 2**43)])
    return rows, columns, first, pitch


@pytest.mark.more
def test_perturb_update_and_checksum_equal_the_cpu_kernels(cuda) -> None:
    choose = random.Random(1)
    for case in range(CASES):
        rows, columns, first, pitch = draw(choose)
        kept, written = choose.choice(TYPES), choose.choice(TYPES)
        name, seeds = str(case), [choose.getrandbits(64) for _ in range(1 + case % 3)]
        keys, factors = [tensor_key(seed, name) for seed in seeds], [choose.uniform(-1, 1) for _ in seeds]
        whole = torch.randn(rows, columns + 3, generator=torch.Generator().manual_seed(case)).to(kept)
        master = whole[:, 1 : columns + 1]  # whose rows are not contiguous
        expected, out = (torch.full((rows, columns), 7.0, dtype=written) for _ in range(2))
        updated = master.clone()
        total = 0
        for row in range(rows):
            start, source = first + row * pitch, cpu.flat(updated[row])
            cpu.perturb(source, cpu.flat(expected[row]), start, keys[0], factors[0])
            cpu.update(source, start, keys, factors)
            total += cpu.checksum(source, start, name)
        block = cpu.flat(whole[:, 1 : columns + 1].clone()).reshape(rows, columns)  # CPU kernels accept blocks, too
        cpu.perturb(block, cpu.flat(out).reshape(rows, columns), first, keys[0], factors[0], pitch)
        assert equal(out, expected), case
        cpu.update(block, first, keys, factors, pitch)
        assert np.array_equal(block, cpu.flat(updated).reshape(rows, columns)), case
        assert cpu.checksum(block, first, name, pitch) == total % 2**64, case
        out.fill_(7.0)
        where = f"{rows} x {columns} from {first} by {pitch}, {kept} to {written}, seeds {seeds}"
        cuda.perturb(master, out, first, keys[0], factors[0], pitch)
        assert equal(out, expected), where
        beside = whole[:, [0, -2, -1]].clone()
        cuda.update(master, first, keys, factors, pitch)
        assert equal(master, updated), where
        assert equal(whole[:, [0, -2, -1]], beside), where
        assert cuda.checksum(master, first, name, pitch) == total % 2**64, where


@pytest.mark.more
def test_low_rank_updates_equal_the_cpu_kernel(cuda, monkeypatch) -> None:
    choose = random.Random(2)
    monkeypatch.setattr(cuda, "_MAX_FACTOR_BYTES", 600)  # so that larger blocks are split
    for case in range(CASES // 4):
        rows, columns = choose.randint(1, 70), choose.choice([1, 63, 64, 65, choose.randint(1, 150)])
        row, column = choose.randint(0, 2**31), choose.choice([0, choose.randint(0, 2**20)])
        width, rank = column + columns + choose.randint(0, 2**12), choose.choice([1, 1, 2, 3, 8])
        kept = choose.choice(TYPES)
        keys = [(choose.getrandbits(64), choose.getrandbits(64)) for _ in range(1 + case % 3)]
        factors = [choose.uniform(-1, 1) for _ in keys]
        whole = torch.randn(rows, columns + 3, generator=torch.Generator().manual_seed(case)).to(kept)
        master, beside = whole[:, 1 : columns + 1], whole[:, [0, -2, -1]].clone()
        expected = master.clone()
        cpu.update_low_rank(cpu.array(expected), row, column, width, keys, factors, rank)
        cuda.update_low_rank(master, row, column, width, keys, factors, rank)
        where = f"{rows} x {columns} from {row}, {column} of {width}, rank {rank}, {kept}, keys {keys}"
        assert equal(master, expected), where
        assert equal(whole[:, [0, -2, -1]], beside), where


@pytest.mark.more
@settings(max_examples=amount(10, 30), deadline=None)
@given(value=st.floats(width=32, allow_nan=False), factor=st.sampled_from([0.0, 1e-30, 0.3]))
def test_rounding_equals_the_cpu_kernel_for_any_magnitude(cuda, value: float, factor: float) -> None:
    master = torch.full((1, 8), value) * (2.0 ** torch.arange(-4, 4))
    for dtype in TYPES:
        out, expected = torch.empty(1, 8, dtype=dtype), torch.empty(1, 8, dtype=dtype)
        cuda.perturb(master, out, 0, 5, factor)
        cpu.perturb(cpu.flat(master), cpu.flat(expected), 0, 5, factor)
        assert equal(out, expected)


@pytest.mark.parametrize(("low_rank", "in_host"), [(None, False), (2, False), (None, True), (2, True)])
def test_master_weights_on_a_gpu_equal_those_on_the_cpu(cuda, interpreted, low_rank, in_host, monkeypatch) -> None:
    tensors = {
        "a": torch.randn(30, 70),
        "b.weight": torch.randn(30, 41),
        "c.weight": torch.randn(70, 30).bfloat16(),
        "bias": torch.randn(33).half(),
        "n": torch.tensor([3]),
    }
    blocks = {"b.weight": TensorBlock((0, 30), (10, 40))}
    here = MasterWeights(tensors.items(), threads=2, blocks=blocks, low_rank=low_rank)
    streamed = interpreted("esplug.noise.kernels.streamed").Streamed
    monkeypatch.setattr(weights, "kernels_for", lambda device, *, in_host: streamed(device) if in_host else cuda)
    there = MasterWeights(tensors.items(), blocks=blocks, low_rank=low_rank, in_host=in_host)
    for iteration in range(2):
        for master in (here, there):
            master.update([iteration, 7], [0.1, -0.2])
        assert here.tensor_checksums() == there.tensor_checksums()
        given = {"a": torch.empty(30, 70, dtype=torch.bfloat16)}
        layout = there.fused({"a": ("a",), "b.weight": ("b.weight",), "c.weight": ("c.weight",), "bias": ("bias",)})
        ours = dict(here.perturbed(iteration, 0.01, torch.bfloat16))
        theirs = dict(there.perturbed(iteration, 0.01, torch.bfloat16, layout, given))
        assert theirs["a"] is given["a"]
        assert all(equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("in_host", [False, True])
def test_members_written_into_the_same_tensors_equal_those_on_the_cpu(cuda, interpreted, in_host, monkeypatch) -> None:
    """The pieces are laid out once, and anew when the tensors move or have another type."""
    streamed = interpreted("esplug.noise.kernels.streamed")
    monkeypatch.setattr(streamed, "_BUFFER_BYTES", 400)  # so that there are several batches, and pieces are split
    tensors = {
        "a": torch.randn(8, 70),
        "b": torch.randn(2, 70).bfloat16(),
        "c": torch.randn(33).half(),
        "d": torch.ones(0),
        "e": torch.randn(10, 70),
    }
    blocks = {"e": TensorBlock((1, 10), (10, 60))}
    here = MasterWeights(tensors.items(), threads=2, blocks=blocks)
    monkeypatch.setattr(
        weights, "kernels_for", lambda device, *, in_host: streamed.Streamed(device) if in_host else cuda
    )
    monkeypatch.setattr(weights, "_CHUNK_ELEMENTS", {"cpu": 250, "host": 250})  # so that tensors are split
    there = MasterWeights(tensors.items(), in_host=in_host, blocks=blocks)
    groups = {"c": ("c",), "ab": ("a", "b"), "d": ("d",), "e": ("e",)}
    layouts = [master.fused(groups) for master in (here, there)]
    counted = []
    monkeypatch.setattr(weights, "PreparedWrites", lambda *given: counted.append(given) or PreparedWrites(*given))
    for dtype in (torch.bfloat16, torch.float32):
        shapes = {"c": 33, "ab": (10, 70), "d": 0, "e": (9, 50)}
        into = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        for seed in (1, None, 2**64 - 1, 1):
            ours = dict(here.perturbed(seed, 0.01, dtype, layouts[0]))
            theirs = dict(there.perturbed(seed, 0.01, dtype, layouts[1], into))
            assert list(theirs) == list(groups)
            assert all(theirs[name] is into[name] and equal(ours[name], into[name]) for name in into)
        for master in (here, there):
            master.update([3, 7], [0.1, -0.2])
    assert len(counted) == 2
    with pytest.raises(ValueError, match="member seed must be between"):
        there.perturbed(2**64, 0.01, dtype, layouts[1], into)

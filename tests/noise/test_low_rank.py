"""Low-rank noise: its definition, the CPU kernel, and updates of master weights, bit for bit."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.noise import full_rank as noise
from esplug.noise import low_rank
from esplug.noise.kernels import cpu
from esplug.weights.master import MasterWeights
from esplug.weights.partition import TensorBlock

SEEDS = st.integers(0, 2**64 - 1)
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def updated(master: torch.Tensor, name: str, seeds: list[int], coefficients: list[float], rank: int) -> torch.Tensor:
    """Update a float32 matrix by the definition, with exact products."""
    total = torch.zeros_like(master)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        a, b = low_rank.factors(seed, name, master.shape, rank)
        factor = np.float32(coefficient) * np.float32(low_rank.scale(rank))
        total = total + float(factor) * (b.double() @ a.double()).float()
    return master + total


@settings(deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 40), st.integers(1, low_rank.MAX_RANK))
def test_noise_is_the_product_of_noise_factors(seed: int, rows: int, columns: int, rank: int):
    a = noise.eps(seed, "w.weight.lora_A", 0, rank * columns).view(rank, columns)
    b = noise.eps(seed, "w.weight.lora_B", 0, rows * rank).view(rows, rank)
    expected = (b.double() @ a.double()) / math.sqrt(rank)
    assert torch.allclose(
        low_rank.eps(seed, "w.weight", (rows, columns), rank).double(), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("rank", [1, 3, low_rank.MAX_RANK])
def test_noise_has_mean_0_and_variance_1_and_is_uncorrelated(rank: int) -> None:
    shape = (300, 400)
    drawn = [
        low_rank.eps(seed, name, shape, rank).double().flatten()
        for seed in range(40)
        for name in ("a.weight", "b.weight")
    ]
    values = torch.stack(drawn)
    assert abs(values.mean()) < 0.01
    assert abs(values.var() - 1) < 0.05
    correlations = torch.corrcoef(values) - torch.eye(len(drawn))
    assert correlations.abs().max() < 0.12  # rank 1 has only as many degrees of freedom as rows and columns


@given(st.integers(-3, low_rank.MAX_RANK + 3))
def test_ranks_without_exact_sums_are_refused(rank: int) -> None:
    if 1 <= rank <= low_rank.MAX_RANK:
        assert low_rank.scale(rank) == noise.float32(low_rank.scale(rank))
        assert rank * 510**2 < 2**24
    else:
        with pytest.raises(ValueError, match="rank"):
            low_rank.scale(rank)


def test_only_linear_layers_are_perturbed() -> None:
    layer = "model.layers.11."
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", "mlp.fc1"):
        assert low_rank.is_perturbed(f"{layer}{name}.weight", (8, 4))
        assert not low_rank.is_perturbed(f"{layer}{name}.bias", (8,))
    for name in ("model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight", "wpe.weight"):
        assert not low_rank.is_perturbed(name, (8, 4))
    assert not low_rank.is_perturbed(f"{layer}input_layernorm.weight", (8,))
    assert not low_rank.is_perturbed(f"{layer}conv.weight", (8, 4, 3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_kernel_adds_exact_products_to_any_block(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 30)), data.draw(st.sampled_from([1, 5, 130, 1025, 2100]))
    rank, members = data.draw(st.sampled_from([1, 2, 7, 64])), data.draw(st.sampled_from([1, 3, 17]))
    seeds = [data.draw(SEEDS) for _ in range(members)]
    coefficients = [data.draw(st.floats(-1, 1, width=32)) for _ in seeds]
    master = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seeds[0] % 2**63))
    keys = low_rank.factor_keys(seeds, "w")
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    for dtype in TYPES:
        kept = master.to(dtype)
        block = kept[row:, column:].clone()
        cpu.update_low_rank(cpu.array(block), row, column, columns, keys, coefficients, rank)
        expected = updated(kept.float(), "w", seeds, coefficients, rank)[row:, column:].to(dtype)
        assert torch.equal(block, expected)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "model.embed_tokens.weight": (90, 16),
        "model.layers.0.mlp.up_proj.weight": (700, 1600),  # larger than a chunk
        "model.layers.0.mlp.down_proj.weight": (16, 70),
        "model.layers.0.mlp.down_proj.bias": (16,),
        "model.norm.weight": (16,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("rank", [1, 5])
def test_updates_change_only_linear_layers(tensors: dict[str, torch.Tensor], rank: int) -> None:
    master = MasterWeights(tensors.items(), threads=2, low_rank=rank)
    seeds, coefficients = [3, 2**64 - 1, 7], [0.5, -0.25, 0.125]
    master.update(seeds, coefficients)
    master.update(seeds[:1], coefficients[1:2])
    for name, tensor in tensors.items():
        expected = tensor
        if low_rank.is_perturbed(name, tensor.shape):
            expected = updated(tensor, name, seeds, coefficients, rank)
            expected = updated(expected, name, seeds[:1], coefficients[1:2], rank)
            assert not torch.equal(expected, tensor)
        assert torch.equal(master[name], expected), name


def test_blocks_are_updated_like_the_whole_model(tensors: dict[str, torch.Tensor]) -> None:
    up, down = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    one = MasterWeights(tensors.items(), low_rank=2)
    parts = [
        MasterWeights(
            tensors.items(), low_rank=2, blocks={up: TensorBlock(rows, (0, 1600)), down: TensorBlock((0, 16), columns)}
        )
        for rows, columns in (((0, 350), (0, 35)), ((350, 700), (35, 70)))
    ]
    for seed in range(5):
        for master in (one, *parts):
            master.update([seed, seed + 9], [0.1, -0.2])
    assert torch.equal(torch.cat([part[up] for part in parts]), one[up])
    assert torch.equal(torch.cat([part[down] for part in parts], dim=1), one[down])


def test_wrong_coefficients_change_nothing(tensors: dict[str, torch.Tensor]) -> None:
    master = MasterWeights(tensors.items(), low_rank=1)
    before = master.checksum()
    for seeds, coefficients in (([1], []), ([1], [math.inf]), ([2**64], [0.1])):
        with pytest.raises(ValueError, match=r"coefficient|seed"):
            master.update(seeds, coefficients)
    master.update([], [])
    assert master.checksum() == before

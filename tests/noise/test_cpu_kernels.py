"""CPU kernels against the reference, bit for bit."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esplug.noise.full_rank import eps, member_seed, tensor_key
from esplug.noise.kernels import cpu

U64 = st.integers(0, 2**64 - 1)
STARTS = st.one_of(st.integers(0, 50), st.integers(2**32 - 20, 2**32 + 20), st.integers(2**34 - 20, 2**44))
COUNTS = st.one_of(st.integers(0, 40), st.integers(2030, 2070), st.integers(4000, 9000))
SCALES = st.floats(-2, 2, width=32)
TYPES = st.sampled_from(cpu.FLOATS)
CASES = settings(max_examples=60, deadline=None)


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Compare bit patterns, so that -0 is not 0 and NaN is NaN."""
    bits = torch.int32 if left.dtype == torch.float32 else torch.int16
    return left.dtype == right.dtype and torch.equal(left.view(bits), right.view(bits))


def weights(count: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(count, generator=torch.Generator().manual_seed(count)) * 0.1).to(dtype)


def perturb(master: torch.Tensor, dtype: torch.dtype, seed: int, name: str, start: int, scale: float) -> torch.Tensor:
    out = torch.empty_like(master, dtype=dtype)
    cpu.perturb(cpu.flat(master), cpu.flat(out), start, tensor_key(seed, name), scale)
    return out


def convert(master: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty_like(master, dtype=dtype)
    cpu.convert(cpu.flat(master), cpu.flat(out))
    return out


@CASES
@given(seed=U64, name=st.text(max_size=8), start=STARTS, count=COUNTS, scale=SCALES, master=TYPES, out=TYPES)
def test_perturb_equals_the_reference(
    seed: int, name: str, start: int, count: int, scale: float, master: torch.dtype, out: torch.dtype
) -> None:
    before = weights(count, master)
    expected = (before.float() + torch.tensor(scale) * eps(seed, name, start, count)).to(out)
    assert equal(perturb(before, out, seed, name, start, scale), expected)


@CASES
@given(members=st.lists(st.tuples(U64, SCALES), max_size=5), start=STARTS, count=COUNTS, master=TYPES, name=st.text())
def test_update_equals_the_reference(
    members: list[tuple[int, float]], start: int, count: int, master: torch.dtype, name: str
) -> None:
    actual = weights(count, master)
    total = torch.zeros(count)
    for seed, coefficient in members:
        total = total + torch.tensor(coefficient) * eps(seed, name, start, count)
    expected = (actual.float() + total).to(master)
    keys = [tensor_key(seed, name) for seed, _ in members]
    cpu.update(cpu.flat(actual), start, keys, [coefficient for _, coefficient in members])
    assert equal(actual, expected)


def test_multiply_and_add_are_not_fused() -> None:
    """A fused multiply-add would give different bits for many of these."""
    count, scale = 4096, np.float32(1 / 3)
    noise = eps(1, "w", 0, count).numpy()
    product = scale * noise
    master = -product * np.float32(1 + 2**-20)
    fused = (scale.astype(np.float64) * noise + master).astype(np.float32)
    apart = product + master
    assert np.count_nonzero(fused != apart) > count // 2

    assert equal(perturb(torch.from_numpy(master), torch.float32, 1, "w", 0, float(scale)), torch.from_numpy(apart))
    updated = torch.from_numpy(master.copy())
    cpu.update(cpu.flat(updated), 0, [tensor_key(1, "w")], [float(scale)])
    assert equal(updated, torch.from_numpy(apart))

    second = np.float32(-0.7) * scale
    fused = (np.float64(second) * eps(2, "w", 0, count).numpy() + product).astype(np.float32)
    apart = second * eps(2, "w", 0, count).numpy() + product
    assert np.count_nonzero(fused != apart) > count // 50
    zeros = torch.zeros(count)
    cpu.update(cpu.flat(zeros), 0, [tensor_key(1, "w"), tensor_key(2, "w")], [float(scale), float(second)])
    assert equal(zeros, torch.from_numpy(apart) + 0.0)


def test_every_16_bit_value_survives_float32() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        wide = convert(every, torch.float32)
        assert torch.equal(wide.isnan(), every.isnan())
        fine = ~every.isnan()
        assert equal(wide[fine], every.float()[fine])
        back = convert(every, dtype)
        assert torch.equal(back.isnan(), every.isnan())
        assert equal(back[fine], every[fine])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_equals_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2_000_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    # Halfway between two neighbouring values of the type, and next to it, for all exponents.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float().view(torch.int32)
    half = 0x8000 if dtype == torch.bfloat16 else 0x1000
    tiny = torch.rand(200_000, generator=generator) * 2.0**-13
    values = [
        bits.view(torch.float32),
        *((every + half + beside).view(torch.float32) for beside in (-1, 0, 1)),
        tiny,
        torch.arange(-4100, 4100) * 2.0**-26,
        torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65504, 65519.996, 65520, 65536, -1e30, 3.4e38]),
    ]
    wide = torch.cat(values)
    rounded = convert(wide, dtype)
    assert torch.equal(rounded.isnan(), wide.isnan())
    assert equal(rounded[~wide.isnan()], wide.to(dtype)[~wide.isnan()])


def test_nan_and_infinity_are_kept() -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf])
    nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    for out in cpu.FLOATS:
        assert perturb(odd, out, 1, "w", 0, 1.0).tolist()[1:] == [torch.inf, -torch.inf]
        assert perturb(torch.cat([odd[:1], nans]), out, 1, "w", 0, 1.0).isnan().all()
        for master in (torch.bfloat16, torch.float16):
            assert perturb(odd.to(master), out, 1, "w", 0, 1.0)[0].isnan()


def test_es_step_agrees_with_float64() -> None:
    alpha, utilities = 0.05, np.array([1.2, -0.3, 0.4, -1.3])
    seeds = [member_seed(3, 0, k) for k in range(4)]
    master = weights(5000, torch.float32)
    noise = np.stack([eps(seed, "w", 0, 5000).numpy() for seed in seeds]).astype(np.float64)
    exact = master.numpy().astype(np.float64) + alpha / 4 * (utilities[:, None] * noise).sum(0)
    cpu.update(cpu.flat(master), 0, [tensor_key(seed, "w") for seed in seeds], list(alpha / 4 * utilities))
    assert np.abs(master.numpy() - exact).max() < 4e-8


def by_hand(values: torch.Tensor, name: str, start: int) -> int:
    mask = 2**64 - 1
    name_hash = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    total = 0
    carrier = np.uint32 if values.dtype == torch.float32 else np.uint16
    for i, bits in enumerate(cpu.flat(values).view(carrier).tolist(), start):
        z = (name_hash + i * 0x9E3779B97F4A7C15 & mask) ^ bits
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        total += z ^ z >> 31
    return total & mask


@pytest.mark.parametrize("dtype", cpu.FLOATS)
@pytest.mark.parametrize("start", [0, 3, 2**33 + 1])
def test_checksum_equals_its_definition(dtype: torch.dtype, start: int) -> None:
    values = weights(1001, dtype)
    values[:3] = torch.tensor([torch.nan, -0.0, -1.0])
    assert cpu.checksum(cpu.flat(values), start, "w") == by_hand(values, "w", start)


@pytest.mark.parametrize("dtype", cpu.FLOATS)
def test_checksums_of_slices_add_up(dtype: torch.dtype) -> None:
    flat = cpu.flat(weights(120, dtype))
    rows = [cpu.checksum(flat[i : i + 30], i, "w") for i in (0, 30, 60, 90)]
    columns = [
        cpu.checksum(flat[row * 10 + c : row * 10 + c + 5], row * 10 + c, "w") for row in range(12) for c in (0, 5)
    ]
    assert sum(rows) % 2**64 == sum(columns) % 2**64 == cpu.checksum(flat, 0, "w")


@pytest.mark.parametrize("dtype", cpu.FLOATS)
def test_checksum_detects_flips_swaps_shifts_and_names(dtype: torch.dtype) -> None:
    flat = cpu.flat(torch.arange(64).to(dtype))
    seen = {cpu.checksum(flat, 0, "w"), cpu.checksum(flat, 1, "w"), cpu.checksum(flat, 0, "v")}
    bits = flat.view(np.uint32 if flat.itemsize == 4 else np.uint16)
    changes = 3
    for position in range(64):
        for bit in range(8 * flat.itemsize):
            bits[position] ^= bits.dtype.type(1 << bit)
            seen.add(cpu.checksum(flat, 0, "w"))
            bits[position] ^= bits.dtype.type(1 << bit)
            changes += 1
    for i in range(64):
        for j in range(i):
            flat[[i, j]] = flat[[j, i]]
            seen.add(cpu.checksum(flat, 0, "w"))
            flat[[i, j]] = flat[[j, i]]
            changes += 1
    assert len(seen) == changes


def test_kernels_work_without_a_cache() -> None:
    script = (
        "import numba.core.caching as caching\n"
        "for locator in caching.CacheImpl._locator_classes:\n"
        "    locator.from_function = classmethod(lambda cls, *_: None)\n"
        "from esplug.noise.kernels import cpu\n"
        "assert type(cpu._checksum._cache).__name__ == 'NullCache'\n"
        "import numpy\n"
        "assert cpu.checksum(numpy.ones(3, numpy.float32), 0, 'w') > 0\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_weights_does_not_import_numba() -> None:
    script = "import sys, esplug.weights.master, esplug.noise.kernels; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)

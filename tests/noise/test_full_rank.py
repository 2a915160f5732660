"""Definition of the noise: known answers, moments, independence."""

import hashlib
import struct

import numpy as np
import pytest
import torch

from esplug.noise.full_rank import SCALE, eps, member_seed, philox, tensor_key, tensor_keys

SEED = member_seed(7, 3, 1)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [  # kat_vectors of Random123, philox4x32 with 10 rounds
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, answer: str) -> None:
    k0, k1 = (int(word, 16) for word in key.split())
    words = philox((k0, k1), torch.tensor([[int(word, 16) for word in counter.split()]]))
    assert " ".join(f"{word:08x}" for word in words[0].tolist()) == answer


def test_scale_is_the_nearest_float32() -> None:
    assert np.float32(1 / np.sqrt(21845.0)) == SCALE


def test_seeds_and_keys_are_the_documented_hashes() -> None:
    digest = hashlib.blake2b(struct.pack("<QQQ", 1, 2, 3), digest_size=8).digest()
    assert member_seed(1, 2, 3) == int.from_bytes(digest, "little")
    digest = hashlib.blake2b(struct.pack("<Q", 5) + b"w\xc3\xa9", digest_size=8).digest()
    assert tensor_key(5, "wé") == int.from_bytes(digest, "little")
    assert tensor_keys([5, 2**64 - 1], "wé") == [tensor_key(5, "wé"), tensor_key(2**64 - 1, "wé")]


def test_element_is_the_byte_sum_of_its_word() -> None:
    key = tensor_key(SEED, "w")
    index = 4 * (2**32 + 5) + 2
    words = philox((key & 0xFFFFFFFF, key >> 32), torch.tensor([[5, 1, 0, 0]]))
    total = sum(int(words[0, 2]).to_bytes(4, "little"))
    assert eps(SEED, "w", index, 1).item() == np.float32(total - 510) * np.float32(SCALE)


def test_members_have_different_seeds() -> None:
    seeds = {member_seed(run, iteration, i) for run in range(5) for iteration in range(20) for i in range(20)}
    assert len(seeds) == 5 * 20 * 20


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(bad: int) -> None:
    for arguments in ((bad, 0, 0), (0, bad, 0), (0, 0, bad)):
        with pytest.raises(ValueError, match="between 0 and"):
            member_seed(*arguments)
    with pytest.raises(ValueError, match="member seed"):
        tensor_key(bad, "w")
    with pytest.raises(ValueError, match="must be between 0 and"):
        tensor_keys([1, bad], "w")
    with pytest.raises(ValueError, match="member seed"):
        eps(bad, "w", 0, 1)


def test_negative_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        eps(0, "w", -1, 1)
    with pytest.raises(ValueError, match="negative"):
        eps(0, "w", 0, -1)


@pytest.mark.parametrize("start", [0, 1, 5, 2**32 - 3, 2**34 - 2, 2**40 + 7])
def test_slices_agree(start: int) -> None:
    whole = eps(SEED, "w", start, 64)
    for low, high in [(0, 0), (0, 1), (1, 2), (3, 30), (17, 64)]:
        assert torch.equal(eps(SEED, "w", start + low, high - low), whole[low:high])


def test_moments_are_those_of_four_bytes() -> None:
    n = 2_000_000
    noise = eps(SEED, "w", 0, n).double()
    assert abs(noise.mean()) < 5 / n**0.5
    assert abs(noise.var() - 1) < 5 * (1.7 / n) ** 0.5
    assert abs((noise**3).mean()) < 0.02
    assert abs((noise**4).mean() - 3 + 0.3) < 0.03
    assert noise.abs().max() <= 510 * SCALE < 3.451


def test_every_byte_value_and_lane_is_used() -> None:
    sums = torch.round(eps(SEED, "w", 0, 400_000) / SCALE).long() + 510
    for lane in range(4):
        counts = torch.bincount(sums[lane::4], minlength=1021)[200:820].double()
        bytes_sum = np.ones(1)
        for _ in range(4):
            bytes_sum = np.convolve(bytes_sum, np.full(256, 1 / 256))
        expected = torch.from_numpy(bytes_sum[200:820]) * 100_000
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert abs(chi_square - 620) < 6 * (2 * 620) ** 0.5


def test_tensors_members_lanes_and_neighbours_are_uncorrelated() -> None:
    n = 300_000
    one = eps(SEED, "layers.0.w", 0, n).double()
    others = {
        "another tensor": eps(SEED, "layers.1.w", 0, n),
        "another member": eps(member_seed(7, 3, 2), "layers.0.w", 0, n),
        "another iteration": eps(member_seed(7, 4, 1), "layers.0.w", 0, n),
        "another run": eps(member_seed(8, 3, 1), "layers.0.w", 0, n),
        "the next element": eps(SEED, "layers.0.w", 1, n),
        "the next block": eps(SEED, "layers.0.w", 4, n),
        "far along": eps(SEED, "layers.0.w", 2**34, n),
    }
    for what, other in others.items():
        assert abs((one * other.double()).mean()) < 5 / n**0.5, what
        assert abs(((one**2 - 1) * (other.double() ** 2 - 1)).mean()) < 10 / n**0.5, what

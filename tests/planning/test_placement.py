"""Placement: the number of engines of a run, and their memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esplug.config import make_config
from esplug.errors import UserError
from esplug.planning.placement import (
    GPU_DRIVER,
    GPU_KV_CACHE_MIN,
    GpuFootprint,
    Node,
    Resources,
    cpu_kv_cache_bytes,
    gpu_master_room,
    plan_engines,
)
from esplug.utils.cores import GIB

LAPTOP = Resources((Node(gpus=0, cores=8, memory=16 * GIB),))
SERVER = Resources((Node(gpus=8, cores=64, memory=512 * GIB),))
CLUSTER = Resources((Node(3, 32, 64 * GIB), Node(3, 32, 64 * GIB)))


@pytest.mark.parametrize(
    ("settings", "found", "engine_gib", "expected"),
    [
        ({}, SERVER, 8, (8, "cuda", 1, 1)),
        ({"n_gpu_per_vllm_engine": 2}, SERVER, 8, (4, "cuda", 2, 1)),
        ({"n_vllm_engines": 3}, SERVER, 8, (3, "cuda", 1, 1)),
        ({"use_gpus": "none"}, SERVER, 4, (64, "cpu", 0, 1)),
        ({}, LAPTOP, 1, (8, "cpu", 0, 1)),
        ({}, LAPTOP, 6, (2, "cpu", 0, 4)),
        ({}, LAPTOP, 100, (1, "cpu", 0, 8)),
        ({"n_vllm_engines": 1}, LAPTOP, 1, (1, "cpu", 0, 8)),
        ({"n_gpu_per_vllm_engine": 2}, CLUSTER, 1, (2, "cuda", 2, 1)),
        ({"use_gpus": "none", "n_vllm_engines": 2}, CLUSTER, 1, (2, "cpu", 0, 32)),
        ({"use_gpus": "none", "n_vllm_engines": 3}, CLUSTER, 1, (3, "cpu", 0, 16)),
        ({"n_gpu_per_vllm_engine": 2}, LAPTOP, 1, (4, "cpu", 0, 2)),
        ({"n_vllm_engines_per_gpu": 4}, SERVER, 8, (32, "cuda", 1, 1)),
        ({"n_vllm_engines_per_gpu": 16}, CLUSTER, 8, (64, "cuda", 1, 1)),  # limited by cores
        ({"n_vllm_engines_per_gpu": 4, "n_vllm_engines": 3}, SERVER, 8, (3, "cuda", 1, 1)),
    ],
)
def test_plan(settings, found, engine_gib, expected) -> None:
    plan = plan_engines(make_config(settings), found, engine_gib * GIB)
    assert (plan.n_engines, plan.device, plan.gpus_per_engine, plan.cores_per_engine) == expected
    sharing = settings.get("n_vllm_engines_per_gpu", 1)
    assert plan.gpu_share == plan.gpus_per_engine / sharing
    assert (f"{sharing} to a GPU" in plan.describe()) == (sharing > 1)


@pytest.mark.parametrize(
    ("settings", "found", "words"),
    [
        ({"n_vllm_engines": 9}, SERVER, ["--n-vllm-engines 9", "9 GPUs", "8 GPUs"]),
        ({"n_gpu_per_vllm_engine": 16}, SERVER, ["--n-gpu-per-vllm-engine 16", "8 GPUs"]),
        ({"n_vllm_engines": 9}, LAPTOP, ["9 CPU cores", "8 CPU cores"]),
        ({"n_vllm_engines": 3, "n_gpu_per_vllm_engine": 2}, CLUSTER, ["6 GPUs", "6 GPUs on 2 nodes"]),
        ({"use_gpus": "0"}, LAPTOP, ["--use-gpus 0", "no usable GPU"]),
        ({"n_vllm_engines_per_gpu": 2}, LAPTOP, ["--n-vllm-engines-per-gpu 2", "on the CPU"]),
        ({"n_vllm_engines_per_gpu": 2, "n_vllm_engines": 17}, SERVER, ["--n-vllm-engines 17", "9 GPUs", "8 GPUs"]),
    ],
)
def test_requests_beyond_the_machines_are_refused(settings, found, words) -> None:
    with pytest.raises(UserError) as caught:
        plan_engines(make_config(settings), found, GIB)
    assert all(word in str(caught.value) for word in words), caught.value


def test_cpu_kv_cache_stays_within_its_bounds() -> None:
    assert cpu_kv_cache_bytes(20 * GIB, 0.5, 2, 2 * GIB, 9 * GIB) == 3 * GIB
    assert cpu_kv_cache_bytes(1 * GIB, 0.5, 2, 2 * GIB, 9 * GIB) == GIB // 4
    assert cpu_kv_cache_bytes(900 * GIB, 0.5, 2, 2 * GIB, 9 * GIB) == 4 * GIB
    assert cpu_kv_cache_bytes(20 * GIB, 0.5, 2, 2 * GIB, GIB) == GIB
    assert cpu_kv_cache_bytes(20 * GIB, 0.5, 2, 2 * GIB, 1000) == GIB // 4


@pytest.mark.parametrize(
    ("billions", "gib", "engines", "choice", "expected"),
    [
        (0.5, 80, 1, "auto", 0.9),
        (1.5, 80, 1, "auto", 0.89),
        (7.6, 80, 1, "auto", 0.6),
        (7.6, 80, 1, "host", 0.9),
        (14.8, 80, 1, "auto", 0.9),  # the master is in host memory
        (14.8, 141, 1, "auto", 0.58),
        (0.5, 24, 1, "auto", 0.79),
        (3.1, 24, 1, "auto", 0.9),
        (1.5, 80, 4, "auto", 0.6),
        (1.5, 80, 8, "auto", 0.7),
        (0.5, 80, 4, "auto", 0.7),
        (9, 80, 1, "auto", 0.54),
        (12, 80, 1, "auto", 0.9),  # less than a fifth of the GPU would be left for the KV cache
        (12, 80, 1, "gpu", 0.4),
    ],
)
def test_memory_share_leaves_room_for_the_master_if_possible(billions, gib, engines, choice, expected) -> None:
    weights = int(billions * 1e9)
    assert GpuFootprint(2 * weights, 0, 4 * weights).memory_share(gib * GIB, engines, choice) == expected


@given(st.integers(1, 10**11), st.integers(4, 200), st.integers(1, 8), st.sampled_from(["auto", "gpu"]))
def test_reduced_memory_share_fits_the_master_and_a_kv_cache(weights, gib, engines, choice):
    footprint, total = GpuFootprint(2 * weights, 0, 4 * weights), gib * GIB
    share = footprint.memory_share(total, engines, choice)
    usual = 0.9 if engines == 1 else 0.7
    assert share <= usual
    if share < usual:
        free = int((total - GPU_DRIVER - share * total) / engines)
        assert gpu_master_room(free, total, (1 - share) / engines) >= footprint.master
        least = GPU_KV_CACHE_MIN if choice == "gpu" else total // 5 // engines
        assert footprint.kv_cache(total, share / engines) >= least

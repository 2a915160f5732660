"""Places of experts: each rank's blocks of a checkpoint's tensors make up its part of vLLM's fused parameters."""

from types import SimpleNamespace

import pytest
import torch

from esplug.vllm_worker.direct_load import ParameterMap, UnmappedError
from esplug.weights.master import MasterWeights

pytest.importorskip("vllm")

EXPERTS, INNER, OUTER = 4, 6, 8
NAMES = {"mlp": ("gate_proj", "up_proj", "down_proj"), "block_sparse_moe": ("w1", "w3", "w2")}


def checkpoint(block: str) -> dict[str, torch.Tensor]:
    """Return a checkpoint in which every expert has three matrices."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    gate, up, down = NAMES[block]
    for expert in range(EXPERTS):
        for name, shape in ((gate, (INNER, OUTER)), (up, (INNER, OUTER)), (down, (OUTER, INNER))):
            tensors[f"{block}.experts.{expert}.{name}.weight"] = torch.randn(shape, generator=generator)
    return tensors


def stacked(tensors: dict[str, torch.Tensor], block: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what vLLM makes of a checkpoint: the gate and up projections of all experts, and the down projections."""
    gate, up, down = (
        torch.stack([tensors[f"{block}.experts.{expert}.{name}.weight"] for expert in range(EXPERTS)])
        for name in NAMES[block]
    )
    return torch.cat([gate, up], 1), down


def model(block: str, nested: bool, shard: tuple[int, int], local: list[int] | None) -> torch.nn.Module:
    """Return a model with one layer of experts, of which one rank has a shard, or the ``local`` ones."""
    rank, ranks = shard
    count, inner = len(local) if local is not None else EXPERTS, INNER // ranks
    layer = torch.nn.Module()
    layer.register_parameter("w13_weight", torch.nn.Parameter(torch.empty(count, 2 * inner, OUTER)))
    layer.register_parameter("w2_weight", torch.nn.Parameter(torch.empty(count, OUTER, inner)))
    parallel = SimpleNamespace(tp_rank=rank, tp_size=ranks)
    layer.moe_config = SimpleNamespace(moe_parallel_config=parallel, num_experts=EXPERTS)
    if local is not None:
        layer.expert_map = torch.tensor([local.index(each) if each in local else -1 for each in range(EXPERTS)])
    runner = torch.nn.Module()
    runner.routed_experts = layer
    whole, part = torch.nn.Module(), torch.nn.Module()
    part.experts = runner if nested else layer
    setattr(whole, block, part)
    return whole


def written(whole: torch.nn.Module, tensors: dict[str, torch.Tensor], rank: int) -> list[torch.Tensor]:
    """Return the parameters that a rank writes from its blocks of a checkpoint."""
    places = ParameterMap.find(whole, {name: tuple(each.shape) for name, each in tensors.items()}, rank)
    assert places.blocks.keys() == tensors.keys()
    master = MasterWeights(tensors.items(), blocks=places.blocks)
    return [tensor for _, tensor in master.perturbed(None, 0.0, torch.float32, master.fused(places.parts))]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("block", NAMES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_tensor_parallel_ranks_have_their_part_of_every_expert(block, nested, ranks) -> None:
    tensors = checkpoint(block)
    gate_up, down = stacked(tensors, block)
    inner = INNER // ranks
    for rank in range(ranks):
        w13, w2 = written(model(block, nested, (rank, ranks), None), tensors, rank)
        part = slice(rank * inner, (rank + 1) * inner)
        expected = torch.cat([gate_up[:, :INNER][:, part], gate_up[:, INNER:][:, part]], 1)
        assert torch.equal(w13.view(expected.shape), expected)
        assert torch.equal(w2.view(EXPERTS, OUTER, inner), down[:, :, part])


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[3], [1, 0, 2]]])
@pytest.mark.parametrize("one_tensor", [False, True])
def test_expert_parallel_ranks_have_their_experts(shares, one_tensor) -> None:
    tensors = checkpoint("mlp")
    gate_up, down = stacked(tensors, "mlp")
    total = MasterWeights(tensors.items()).checksum()
    if one_tensor:
        tensors = {"mlp.experts.gate_up_proj": gate_up, "mlp.experts.down_proj": down}
        total = MasterWeights(tensors.items()).checksum()
    sums = 0
    for rank, local in enumerate(shares):
        whole = model("mlp", True, (0, 1), local)
        if one_tensor and local not in ([0, 1], [2, 3], [3]):
            with pytest.raises(UnmappedError, match=r"experts\.routed_experts\.w13_weight has no counterpart"):
                written(whole, tensors, rank)
            continue
        w13, w2 = written(whole, tensors, rank)
        assert torch.equal(w13.view(len(local), -1, OUTER), gate_up[local])
        assert torch.equal(w2.view(len(local), OUTER, -1), down[local])
        places = ParameterMap.find(whole, {name: tuple(each.shape) for name, each in tensors.items()}, rank)
        sums += MasterWeights(tensors.items(), blocks=places.blocks).checksum()
    if not one_tensor or shares == [[0, 1], [2, 3]]:
        assert sums % 2**64 == total  # each tensor is counted by one rank


def test_experts_stacked_in_one_tensor_are_not_divided_within() -> None:
    tensors = dict(
        zip(("mlp.experts.gate_up_proj", "mlp.experts.down_proj"), stacked(checkpoint("mlp"), "mlp"), strict=True)
    )
    w13, w2 = written(model("mlp", True, (0, 1), None), tensors, 0)
    assert torch.equal(w13, tensors["mlp.experts.gate_up_proj"])
    assert torch.equal(w2, tensors["mlp.experts.down_proj"])
    with pytest.raises(UnmappedError, match="has no counterpart"):
        written(model("mlp", True, (0, 2), None), tensors, 0)


def test_an_expert_that_is_missing_is_not_taken_for_complete() -> None:
    tensors = checkpoint("mlp")
    del tensors["mlp.experts.2.up_proj.weight"]
    with pytest.raises(UnmappedError, match="w13_weight has no counterpart"):
        written(model("mlp", True, (0, 1), None), tensors, 0)

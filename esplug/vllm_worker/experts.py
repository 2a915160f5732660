"""Experts of mixture-of-experts models: where a checkpoint's tensors are in the parameters that vLLM fuses them into.

vLLM keeps the gate and up projections of all experts of a layer in ``w13_weight``, and the down projections in
``w2_weight``. On a CPU it packs both when it has loaded them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from esplug.weights.partition import TensorBlock

VLLM_INTERNALS = {
    "vllm.model_executor.layers.fused_moe.config:FusedMoEConfig": "moe_parallel_config num_experts",
    "vllm.model_executor.layers.fused_moe.config:FusedMoEParallelConfig": "tp_rank tp_size",
    "vllm.model_executor.layers.fused_moe.routed_experts:RoutedExperts": "expert_map moe_config quant_method",
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:UnquantizedFusedMoEMethod": "moe_kernel "
    "process_weights_after_loading(layer)",
    "vllm.model_executor.layers.fused_moe.modular_kernel:FusedMoEKernel": "fused_experts",
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe:CPUUnquantizedExperts": "process_weights_after_loading("
    "layer)",
}

GATE_UP, DOWN = "w13_weight", "w2_weight"
_SHARED = "e_score_correction_bias"  # the router's
_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))  # of an expert's matrices in checkpoints

Shape = tuple[int, ...]


def has_experts(module: torch.nn.Module) -> bool:
    """Return whether a layer of vLLM holds routed experts, fused, not quantized and without biases."""
    return {name for name, _ in module.named_parameters(recurse=False)} - {_SHARED} == {GATE_UP, DOWN}


class ExpertPlaces:
    """Where the checkpoint's tensors of a layer's experts belong on this rank, with tensor or expert parallelism.

    Args:
        path: of the layer in vLLM's model.
        layer: vLLM's layer with the experts.
        shapes: of the checkpoint's tensors.
        rank: of this process in the tensor-parallel group.

    Attributes:
        parts: by parameter, the tensors that it consists of, end to end; none if they are not in the checkpoint.
        blocks: this rank's block of each of these tensors, and of those that only other ranks have.
    """

    def __init__(self, path: str, layer: Any, shapes: Mapping[str, Shape], rank: int) -> None:
        self._prefix = path.removesuffix(".base_layer").removesuffix(".routed_experts")
        self._shapes, self._rank = shapes, rank
        parallel, experts = layer.moe_config.moe_parallel_config, range(layer.moe_config.num_experts)
        self._shard = parallel.tp_rank, parallel.tp_size
        placed = getattr(layer, "expert_map", None)  # with expert parallelism, each expert's place on this rank, or -1
        slots = list(experts) if placed is None else placed.tolist()
        here = sorted((expert for expert in experts if slots[expert] >= 0), key=lambda expert: slots[expert])
        self._one_copy = placed is not None or parallel.tp_size > 1  # ranks have different tensors, or parts of them
        self.parts: dict[str, tuple[str, ...]] = {}
        self.blocks: dict[str, TensorBlock] = {}
        for kind in (GATE_UP, DOWN):
            names = self._alone(kind, experts)
            if names:
                self.parts[kind] = tuple(name for expert in here for name in names[expert])
                self.blocks |= {name: self._block(kind, name, False) for each in names for name in each}
                self.blocks |= {name: self._block(kind, name, True) for name in self.parts[kind]}
            else:
                self._add_stacked(kind, here)

    def _alone(self, kind: str, experts: range) -> list[list[str]]:
        """Return the names of each expert's tensors, where every expert has its own."""
        for gate, up, down in _NAMES:
            order = (gate, up) if kind == GATE_UP else (down,)
            names = [[f"{self._prefix}.{expert}.{each}.weight" for each in order] for expert in experts]
            if all(name in self._shapes for each in names for name in each):
                return names
        return []

    def _add_stacked(self, kind: str, here: Sequence[int]) -> None:
        """Add the tensor in which a checkpoint stacks all experts, unless it is divided within experts."""
        name = f"{self._prefix}.{'gate_up_proj' if kind == GATE_UP else 'down_proj'}"
        in_order = list(here) == list(range(here[0], here[0] + len(here)))
        if len(self._shapes.get(name, ())) == 3 and self._shard[1] == 1 and in_order:
            whole = TensorBlock.whole(self._shapes[name], counted=self._one_copy or self._rank == 0)
            self.parts[kind] = (name,)
            self.blocks[name] = TensorBlock((here[0], here[0] + len(here)), whole.columns, whole.counted)

    def _block(self, kind: str, name: str, here: bool) -> TensorBlock:
        """Return the block of one expert's tensor; an empty one if the expert is not ``here``."""
        (height, width), (shard, shards) = self._shapes[name], self._shard
        if not here:
            return TensorBlock((0, 0), (0, width), counted=False)
        if kind == GATE_UP:
            rows, columns = (shard * (height // shards), (shard + 1) * (height // shards)), (0, width)
        else:
            rows, columns = (0, height), (shard * (width // shards), (shard + 1) * (width // shards))
        return TensorBlock(rows, columns, counted=self._one_copy or self._rank == 0)


def is_packed(layer: Any) -> bool:
    """Return whether vLLM packs the experts of this layer. It does so on a CPU only."""
    return bool(getattr(layer, GATE_UP).device.type == "cpu")


def put(layer: Any, kind: str, shape: Shape, tensor: torch.Tensor) -> None:
    """Set a parameter of a layer whose experts vLLM packs, of this shape before packing. Packs after the last one."""
    setattr(layer, kind, torch.nn.Parameter(tensor.view(shape), requires_grad=False))
    if kind == DOWN:
        layer.quant_method.moe_kernel.fused_experts.process_weights_after_loading(layer)

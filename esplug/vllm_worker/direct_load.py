"""Direct loader: writes weights straight into the parameters of vLLM's model.

vLLM's own ``reload_weights`` first copies each checkpoint tensor into its part of a fused parameter, and then packs it.
On a CPU that takes as long as making the noise, and it needs all weights on every tensor-parallel rank.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from esplug.vllm_worker.experts import DOWN, GATE_UP, ExpertPlaces, has_experts, is_packed, put
from esplug.vllm_worker.fingerprint import output_embeddings
from esplug.weights.master import MasterWeights
from esplug.weights.partition import TensorBlock

VLLM_INTERNALS = {
    "vllm.model_executor.models.llama:LlamaForCausalLM": "packed_modules_mapping",
    "vllm.model_executor.layers.attention:Attention": "process_weights_after_loading",
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method": "UnquantizedFusedMoEMethod",
    "vllm.model_executor.layers.linear:MergedColumnParallelLinear": "output_sizes",
    "vllm.model_executor.layers.linear:LinearBase": "quant_method tp_size",
    "vllm.model_executor.layers.linear:QKVParallelLinear": "head_size num_heads num_kv_heads "
    "num_kv_head_replicas v_head_size",
    "vllm.model_executor.layers.linear": "ReplicatedLinear RowParallelLinear",
    "vllm.model_executor.layers.linear:UnquantizedLinearMethod": "process_weights_after_loading(layer)",
    "vllm.model_executor.layers.utils": "dispatch_cpu_unquantized_gemm.cpu_linear",
    "vllm.model_executor.layers.vocab_parallel_embedding": "ParallelLMHead "
    "UnquantizedEmbeddingMethod.process_weights_after_loading(layer) VocabParallelEmbedding.quant_method "
    "VocabParallelEmbedding.shard_indices VocabParallelEmbeddingShardIndices.org_vocab_end_index "
    "VocabParallelEmbeddingShardIndices.org_vocab_start_index",
}

REDUNDANT = ("lm_head.weight", "rotary_emb.inv_freq")  # checkpoints may have these though they are tied or computed
Shape = tuple[int, ...]


class UnmappedError(Exception):
    """A model's weights cannot be written directly; the message says why."""


@dataclass(frozen=True, slots=True)
class ParameterMap:
    """Where a checkpoint's tensors belong in the model of one tensor-parallel rank."""

    parts: dict[str, tuple[str, ...]]  # by parameter: the checkpoint's tensors that it consists of, end to end
    blocks: dict[str, TensorBlock]  # the rank's block of each of these tensors

    @classmethod
    def find(cls, model: torch.nn.Module, shapes: Mapping[str, Shape], rank: int) -> "ParameterMap":
        """Map tensors of these shapes by vLLM's layers and its model's ``packed_modules_mapping``, for one rank.

        Raises:
            UnmappedError: the source of a parameter is unknown.
        """
        fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        places = cls({}, {})
        seen: set[int] = set()
        for path, module in model.named_modules():
            if _derives(module):
                raise UnmappedError(f"{path} derives more from its weights than esplug knows")
            try:
                experts = ExpertPlaces(path, module, shapes, rank) if has_experts(module) else None
            except AttributeError as error:  # another version of vLLM
                raise UnmappedError(f"{path}: {error}") from error
            name = path.removesuffix(".base_layer")  # a layer with adapters
            parent, _, leaf = name.rpartition(".")
            # A bias comes before its weight, because both are packed together.
            for kind, parameter in sorted(module.named_parameters(recurse=False)):
                if id(parameter) in seen:  # tied
                    continue
                seen.add(id(parameter))
                target, stored = f"{path}.{kind}", f"{name}.{kind}"
                if experts and kind in (GATE_UP, DOWN):
                    places._add(target, experts.parts.get(kind, ()), {})
                    continue
                parts = [stored] if stored in shapes else [f"{parent}.{each}.{kind}" for each in fused.get(leaf, ())]
                known = [shapes[part] for part in parts if part in shapes]
                found = _blocks(target, module, kind, known, rank) if parts and len(known) == len(parts) else []
                places._add(target, tuple(parts) if found else (), dict(zip(parts, found, strict=False)))
            places.blocks.update(experts.blocks if experts else {})
        for name in shapes.keys() - places.blocks.keys():
            if not name.endswith(REDUNDANT):
                raise UnmappedError(f"the checkpoint's {name} has no known place in the model")
        return places

    def _add(self, target: str, parts: tuple[str, ...], blocks: Mapping[str, TensorBlock]) -> None:
        """Add a parameter that consists of these tensors, and the rank's blocks of them."""
        if not parts:
            raise UnmappedError(f"{target} has no counterpart in the checkpoint")
        if any(part in self.blocks for part in parts):
            raise UnmappedError(f"{target} shares its weights with another parameter")
        self.parts[target] = parts
        self.blocks.update(blocks)


class DirectLoader:
    """Writes weights into vLLM's model. :mod:`.start_proof` checks that it writes exactly what vLLM has loaded.

    Args:
        model: vLLM's model, just loaded, of type ``dtype``.
        master: the same weights; with tensor parallelism, this rank's blocks of them.
        places: where the weights are in the model.

    Raises:
        UnmappedError: a shape differs. Use ``reload_weights`` then.
    """

    def __init__(self, model: torch.nn.Module, master: MasterWeights, places: ParameterMap, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._in_place: dict[str, Callable[[], torch.Tensor]] = {}
        self._finish: dict[str, Callable[[torch.Tensor], None]] = {}
        try:
            self._layout = master.fused(places.parts)
            for target in places.parts:
                self._add(model, master, target)
        except (KeyError, ValueError) as error:  # not floating-point, or wrong shapes
            raise UnmappedError(str(error)) from error

    @torch.no_grad()
    def write(self, master: MasterWeights, member_seed: int | None, scale: float) -> None:
        """Write ``master + scale * eps(member_seed)`` into the model; the master itself without a seed."""
        into = {target: parameter() for target, parameter in self._in_place.items()}
        for name, tensor in master.perturbed(member_seed, scale, self._dtype, self._layout, into):
            self._finish[name](tensor)
        if master.device.type == "cuda":  # the model may use another stream
            torch.cuda.synchronize(master.device)

    def _add(self, model: torch.nn.Module, master: MasterWeights, target: str) -> None:
        """Choose how to write a parameter: packed, in place, or by a copy."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

        path, _, kind = target.rpartition(".")
        module: Any = model.get_submodule(path)
        method = getattr(module, "quant_method", None)
        if kind == "weight" and hasattr(module, "cpu_linear") and isinstance(method, UnquantizedLinearMethod):
            self._finish[target] = functools.partial(_pack_linear, module)
            return
        parameter, given = getattr(module, kind), self._layout.shapes[target]
        experts = has_experts(module) and kind in (GATE_UP, DOWN)
        if experts and is_packed(module):
            self._finish[target] = functools.partial(put, module, kind, (len(parameter), -1, given[-1]))
            return
        wanted = tuple(parameter.shape)
        if experts and len(given) == 2:  # a matrix of each expert, end to end
            wanted = (wanted[0] * wanted[1], wanted[2])
        if isinstance(module, VocabParallelEmbedding):  # padded
            wanted = (min(given[0], wanted[0]), *wanted[1:])
        if given != wanted:
            raise ValueError(f"{target} has shape {wanted} instead of {given}")
        outputs = output_embeddings(model, parameter)
        if parameter.dtype == self._dtype and parameter.device == master.device and parameter.is_contiguous():
            rows = given[0] if isinstance(module, VocabParallelEmbedding) else None
            self._in_place[target] = lambda: getattr(module, kind).data[:rows] if given else parameter.data
            self._finish[target] = lambda _: _pack_embeddings(outputs)
        else:
            self._finish[target] = functools.partial(_copy, module, kind, outputs)


def _derives(module: torch.nn.Module) -> bool:
    """Return whether a layer computes something else from its weights once they are loaded."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    known = (Attention, UnquantizedFusedMoEMethod)
    return hasattr(module, "process_weights_after_loading") and not isinstance(module, known)


def _blocks(target: str, module: Any, kind: str, shapes: Sequence[Shape], rank: int) -> list[TensorBlock]:
    """Return a rank's blocks of the tensors that make up a parameter of one of vLLM's layers."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    size = 1 if isinstance(module, linear.ReplicatedLinear) else getattr(module, "tp_size", 1)
    rows: list[tuple[int, int]] = []
    counted = [True] * len(shapes)
    if size == 1 or (isinstance(module, linear.RowParallelLinear) and kind == "bias"):
        return [TensorBlock.whole(shape, counted=rank == 0) for shape in shapes]
    if isinstance(module, linear.RowParallelLinear) and kind == "weight" and len(shapes[0]) == 2:
        width = shapes[0][1] // size
        return [TensorBlock((0, shapes[0][0]), (rank * width, (rank + 1) * width))]
    if isinstance(module, VocabParallelEmbedding):
        rows = [(module.shard_indices.org_vocab_start_index, module.shard_indices.org_vocab_end_index)]
    elif isinstance(module, linear.QKVParallelLinear):
        shared = module.num_kv_head_replicas  # number of ranks with the same keys and values
        heights = [module.num_heads * module.head_size, module.num_kv_heads * module.head_size]
        heights.append(module.num_kv_heads * module.v_head_size)
        shards = [rank, rank // shared, rank // shared]
        counted = [True, rank % shared == 0, rank % shared == 0]
        rows = [(shard * height, (shard + 1) * height) for shard, height in zip(shards, heights, strict=True)]
    elif isinstance(module, linear.ColumnParallelLinear) and len(shapes) == len(
        getattr(module, "output_sizes", shapes)
    ):
        rows = [(rank * (shape[0] // size), (rank + 1) * (shape[0] // size)) for shape in shapes]
    if len(rows) != len(shapes):
        raise UnmappedError(f"{target} is divided among ranks in a way that esplug does not know")
    whole = [TensorBlock.whole(shape) for shape in shapes]
    return [TensorBlock(each, all_.columns, count) for each, all_, count in zip(rows, whole, counted, strict=True)]


def _pack_linear(layer: Any, tensor: torch.Tensor) -> None:
    """Set the weight of a linear layer, and renew its packed copy."""
    layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
    layer.quant_method.process_weights_after_loading(layer)


def _copy(module: Any, kind: str, packed: list[Any], tensor: torch.Tensor) -> None:
    """Copy values into a parameter that cannot be written in place."""
    parameter = getattr(module, kind)
    if kind == "bias" and hasattr(module, "cpu_linear") and parameter.dtype != tensor.dtype:
        parameter.data = tensor  # vLLM makes it float32 when it packs the weight
    else:
        parameter[: len(tensor)].copy_(tensor)
    _pack_embeddings(packed)


def _pack_embeddings(layers: list[Any]) -> None:
    for layer in layers:
        layer.quant_method.process_weights_after_loading(layer)

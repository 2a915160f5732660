"""Adapters of low-rank members: each member is a LoRA adapter, generated from its seed in one of vLLM's slots.

No adapter is loaded from a file. One is registered for every slot at the start, and its factors are overwritten from
then on. Requests name their member's slot, so that one batch can answer with many members.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from esplug.errors import UserError
from esplug.noise.kernels import kernels_for
from esplug.noise.low_rank import factor_keys, is_perturbed
from esplug.vllm_worker.direct_load import ParameterMap

VLLM_INTERNALS = {
    "vllm.lora.model_manager:LoRAModelManager": "__init__.lora_manager device lora_index_to_id lora_slots modules "
    "activate_adapter(lora_id) add_adapter(adapter) create_dummy_lora(lora_id, rank, embedding_modules) "
    "remove_all_adapters()",
    "vllm.lora.lora_model:LoRAModel": "clone(lora_model_id)",
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA": "base_layer lora_a_stacked lora_b_stacked",
}

#: Zeros to which noise is added, the output, and the offset of its first element and its row pitch in the noise.
_Target = tuple[Any, Any, int, int]
#: The same with the key of the noise before the pitch, as the kernels take it.
_Piece = tuple[Any, Any, int, int, int]


class Adapters:
    """Writes members' factors into vLLM's adapter slots.

    Args:
        model: vLLM's model, created with :func:`esplug.planning.adapter_sizes.adapter_options`.
        places: where the checkpoint's tensors, of these ``shapes``, are in it.
        rank: rank of the members' perturbations.

    Raises:
        UserError: vLLM has no adapter for one of the linear layers.
    """

    def __init__(self, model: Any, places: ParameterMap, shapes: dict[str, tuple[int, ...]], rank: int) -> None:
        manager = model.lora_manager
        self._rank, self._names = rank, []
        layers = _layers(manager, places, shapes)
        manager.remove_all_adapters()
        dummy = manager.create_dummy_lora(1, rank, {})
        for slot in range(1, manager.lora_slots + 1):
            manager.add_adapter(dummy.clone(slot))
            manager.activate_adapter(slot)
        assert manager.lora_index_to_id == list(range(1, manager.lora_slots + 1)), manager.lora_index_to_id
        self._kernels = kernels_for(manager.device)
        stacks = (stack for layer, _ in layers for stack in (*layer.lora_a_stacked, *layer.lora_b_stacked))
        largest = max(math.prod(stack.shape[2:]) for stack in stacks)
        self._zeros = torch.zeros(largest, device=manager.device)
        # By slot, then by tensor.
        self._a: list[list[_Target]] = [[] for _ in range(manager.lora_slots)]
        self._b: list[list[_Target]] = [[] for _ in range(manager.lora_slots)]
        for layer, names in layers:
            for name, a, b in zip(names, layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
                block, width = places.blocks[name], shapes[name][1]
                self._names.append(name)
                for slot in range(manager.lora_slots):
                    self._a[slot].append(self._target(a[slot, 0, :rank], block.columns[0], width))
                    self._b[slot].append(self._target(b[slot, 0, :, :rank], block.rows[0] * rank, rank))

    def write(self, members: Sequence[tuple[int, float]]) -> None:
        """Write members, given as seed and scale (``sign * sigma``), into the slots from the first on."""
        a: list[_Piece] = []
        b: dict[float, list[_Piece]] = {}
        keys = [factor_keys([seed for seed, _ in members], name) for name in self._names]
        for slot, (_, scale) in enumerate(members):
            a += [(*each[:3], pairs[slot][0], each[3]) for each, pairs in zip(self._a[slot], keys, strict=True)]
            pieces = b.setdefault(scale / math.sqrt(self._rank), [])
            pieces += [(*each[:3], pairs[slot][1], each[3]) for each, pairs in zip(self._b[slot], keys, strict=True)]
        self._kernels.perturb_all(a, 1.0)
        for scale, pieces in b.items():
            self._kernels.perturb_all(pieces, scale)
        if self._zeros.is_cuda:  # the model may use another stream
            torch.cuda.synchronize(self._zeros.device)

    def _target(self, out: torch.Tensor, start: int, pitch: int) -> _Target:
        if out.is_contiguous() and out.shape[1] == pitch:  # without gaps between rows
            out = out.view(1, -1)
        zeros = self._zeros[: out.numel()].view(out.shape)
        return self._kernels.array(zeros), self._kernels.array(out), start, pitch


def _layers(
    manager: Any, places: ParameterMap, shapes: dict[str, tuple[int, ...]]
) -> list[tuple[Any, tuple[str, ...]]]:
    """Return vLLM's layers with adapters, each with the checkpoint's tensors that make up its weight."""
    layers, missing = [], {name for name in shapes if is_perturbed(name, shapes[name])}
    for path, layer in manager.modules.items():
        names = places.parts.get(f"{path}.base_layer.weight", ())
        if len(names) == len(layer.lora_a_stacked) and missing.issuperset(names):
            layers.append((layer, names))
            missing.difference_update(names)
    if missing or len(layers) < len(manager.modules):
        which = min(missing) if missing else "something else than linear layers"
        raise UserError(f"--perturbation low-rank: vLLM has no adapter for {which}; choose --perturbation full")
    return layers

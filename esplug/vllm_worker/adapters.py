"""Members of low rank inside vLLM: each is a LoRA adapter, made from its seed in the slot where vLLM keeps it.

Nothing goes through files, and nothing is loaded: an adapter is registered once for every slot, and from then on only
overwritten. Requests name their member's slot, so that one batch holds answers of many.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from esplug.errors import UserError
from esplug.noise.low_rank import factor_keys, is_perturbed

if TYPE_CHECKING:
    import torch

    from esplug.vllm_worker.direct_load import ParameterMap


class Adapters:
    """Writes members' factors into vLLM's slots.

    Args:
        model: of vLLM, made with :func:`adapter_options`.
        places: of the checkpoint's tensors in it.
        shapes: of the checkpoint's tensors.
        rank: of the members' noise.

    Raises:
        UserError: there is a linear layer for which vLLM has no adapter.
    """

    def __init__(self, model: Any, places: "ParameterMap", shapes: dict[str, tuple[int, ...]], rank: int) -> None:
        import torch

        from esplug.noise.kernels import kernels_for

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
        # By slot, and then by tensor: where each factor is written, its first element and the length of its rows.
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
        """Fill slots from the first on with members, given as seed and scale, ``sign * sigma``."""
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
        if self._zeros.is_cuda:  # the model may run on another stream
            import torch

            torch.cuda.synchronize(self._zeros.device)

    def _target(self, out: "torch.Tensor", start: int, pitch: int) -> "_Target":
        if out.is_contiguous() and out.shape[1] == pitch:  # end to end
            out = out.view(1, -1)
        zeros = self._zeros[: out.numel()].view(out.shape)
        return self._kernels.array(zeros), self._kernels.array(out), start, pitch


#: Zeros to add noise to, the factor, its first element, and elements from one of its rows to the next.
_Target = tuple[Any, Any, int, int]
#: The same with the key of its noise, as the kernels take it.
_Piece = tuple[Any, Any, int, int, int]


def _layers(
    manager: Any, places: "ParameterMap", shapes: dict[str, tuple[int, ...]]
) -> list[tuple[Any, tuple[str, ...]]]:
    """Return vLLM's layers with adapters, each with the tensors that make up its weight."""
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

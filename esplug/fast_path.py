"""The short way into vLLM's model on a CPU: weights are written as its layers keep them, and packed once.

The long way, vLLM's ``reload_weights``, copies each of a checkpoint's tensors into its part of a layer's before that is
packed, which takes as long as making the noise.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from esplug.weights import MasterWeights

_PROBES = 4  # inputs by which packed weights, which nobody can read, are compared


class UnmappedError(Exception):
    """Why a model's weights cannot go the short way."""


class FastPath:
    """Where a checkpoint's tensors belong in vLLM's model, proven by writing the very weights that vLLM has loaded.

    Args:
        model: as vLLM has loaded it, in one process.
        master: the same weights.
        dtype: the model's.

    Raises:
        UnmappedError: a parameter has no tensors in the checkpoint that are known to make it up, or the model does not
            compute the same with what was written. It must be written by ``reload_weights`` then.
    """

    def __init__(self, model: torch.nn.Module, master: "MasterWeights", dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._write: dict[str, Callable[[torch.Tensor], None]] = {}
        self._packed: list[tuple[str, Any]] = []
        self._layout = master.fused(self._find(model, master))
        before = self._fingerprint(model)
        try:
            self.write(master, None, 0.0)
            after = self._fingerprint(model)
        except RuntimeError as error:  # of torch: shapes that do not fit
            raise UnmappedError(str(error)) from error
        for name, value in before.items():
            if not torch.equal(value, after[name]):
                raise UnmappedError(f"{name} would not be as vLLM has loaded it")

    @torch.no_grad()
    def write(self, master: "MasterWeights", member_seed: int | None, scale: float) -> None:
        """Give the model ``master + scale * eps(member_seed)``; without a seed, the master itself."""
        for name, tensor in master.perturbed(member_seed, scale, self._dtype, self._layout):
            self._write[name](tensor)

    def _find(self, model: torch.nn.Module, master: "MasterWeights") -> dict[str, tuple[str, ...]]:
        """Say which of the checkpoint's tensors make up each parameter, and how it is written."""
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod

        fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        known = master.dtypes
        groups: dict[str, tuple[str, ...]] = {}
        seen: set[int] = set()
        for path, module in model.named_modules():
            parent, _, leaf = path.rpartition(".")
            # A bias comes before its weight, with which it is packed.
            for kind, parameter in sorted(module.named_parameters(recurse=False)):
                target = f"{path}.{kind}"
                parts = [target] if target in known else [f"{parent}.{each}.{kind}" for each in fused.get(leaf, ())]
                if id(parameter) in seen:  # tied
                    continue
                seen.add(id(parameter))
                if not parts or any(not known.get(part, torch.int64).is_floating_point for part in parts):
                    raise UnmappedError(f"{target} has no counterpart in the checkpoint")
                groups[target] = tuple(parts)
                if kind == "weight" and isinstance(getattr(module, "quant_method", None), UnquantizedLinearMethod):
                    self._packed.append((target, module))
                    self._write[target] = _into_linear(module)
                else:
                    outputs = _output_embeddings(model, parameter)
                    self._packed += [(target, layer) for layer in outputs]
                    self._write[target] = _into_parameter(module, kind, outputs)
        return groups

    @torch.no_grad()
    def _fingerprint(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Return what the model's parameters are, and what those that are packed compute."""
        seen = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.numel()}
        generator = torch.Generator().manual_seed(0)
        for target, layer in self._packed:
            inputs = torch.randn(_PROBES, self._layout.shapes[target][1], generator=generator).to(self._dtype)
            seen[f"{target} (packed)"] = layer.cpu_linear(inputs, layer.weight, getattr(layer, "bias", None))
        return seen


def _into_linear(layer: Any) -> Callable[[torch.Tensor], None]:
    """Return what gives a linear layer its weight, of which it keeps a packed copy."""

    def write(tensor: torch.Tensor) -> None:
        layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
        layer.quant_method.process_weights_after_loading(layer)

    return write


def _into_parameter(module: Any, kind: str, packed: list[Any]) -> Callable[[torch.Tensor], None]:
    """Return what overwrites a parameter that is kept as it is, and renews the copies of it that are packed."""

    def write(tensor: torch.Tensor) -> None:
        parameter = getattr(module, kind)
        if parameter.dtype != tensor.dtype:  # a bias that was made float32 for packed weights
            parameter.data = tensor
        else:
            parameter[: len(tensor)].copy_(tensor)  # vLLM pads vocabularies
        for layer in packed:
            layer.quant_method.process_weights_after_loading(layer)

    return write


def _output_embeddings(model: torch.nn.Module, parameter: torch.nn.Parameter) -> list[Any]:
    """Find the layers that compute with a packed copy of these embeddings, tied or not."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [
        module
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and module.weight is parameter and hasattr(module, "cpu_linear")
    ]
    return [layer for layer in layers if isinstance(layer, ParallelLMHead)] or layers

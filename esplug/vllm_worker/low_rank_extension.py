"""What esplug adds to vLLM's workers for members of low rank. vLLM imports it there before it makes the model."""

from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform

from esplug.errors import UserError
from esplug.vllm_worker.adapters import Adapters
from esplug.vllm_worker.extension import ESWorkerExtension

if TYPE_CHECKING:
    from esplug.checkpoints.history import CaughtUp

_WRAPPER = (
    "esplug.vllm_worker.adapters_cpu.MaskedAdapters"
    if current_platform.is_cpu()
    else "esplug.vllm_worker.adapters_gpu.RowAdapters"
)
type(current_platform).get_punica_wrapper = classmethod(lambda _: _WRAPPER)


class LowRankWorkerExtension(ESWorkerExtension):
    """Has the model compute with the master itself, and members as its adapters."""

    _es_adapters: Adapters
    _es_alone: bool  # whether the model's weights are those of the master, as it is now

    def es_catch_up(self, *arguments: Any) -> "CaughtUp":
        """See :meth:`ESWorkerExtension.es_catch_up`."""
        caught_up = super().es_catch_up(*arguments)
        self._es_alone = False
        if not hasattr(self, "_es_adapters"):
            if self._es_places is None:
                raise UserError(
                    "--perturbation low-rank: not for this model, whose weights cannot go the short way, as the "
                    "engine's log says; choose --perturbation full"
                )
            model, master = self.model_runner.get_model(), self._es_master
            assert master.low_rank
            self._es_adapters = Adapters(model, self._es_places, master.shapes, master.low_rank)
        return caught_up

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """See :meth:`ESWorkerExtension.es_set_weights`; nothing to do where the model has the master already."""
        if member_seed is not None or not self._es_alone:
            super().es_set_weights(member_seed, scale)
        self._es_alone = member_seed is None

    def es_set_members(self, members: list[tuple[int, float]]) -> None:
        """Give the model the master itself, and its adapters these members, as seeds and scales."""
        self.es_set_weights(None, 0.0)
        self._es_adapters.write(members)

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        """See :meth:`ESWorkerExtension.es_update`."""
        self._es_alone = False
        return super().es_update(seeds, coefficients)

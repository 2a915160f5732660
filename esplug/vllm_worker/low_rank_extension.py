"""Worker extension for low-rank members. vLLM imports it before it creates its model."""

from vllm.platforms import current_platform

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.errors import UserError
from esplug.vllm_worker.adapters import Adapters
from esplug.vllm_worker.extension import ESWorkerExtension, MasterSetup

VLLM_INTERNALS = {"vllm.platforms.interface:Platform": "get_punica_wrapper()"}

_NOT_DIRECT = (
    "--perturbation low-rank: not for this model, whose weights esplug cannot write directly, as the engine's log "
    "says; choose --perturbation full"
)
_WRAPPER = (
    "esplug.vllm_worker.adapters_cpu.MaskedAdapters"
    if current_platform.is_cpu()
    else "esplug.vllm_worker.adapters_gpu.RowAdapters"
)
type(current_platform).get_punica_wrapper = classmethod(lambda _: _WRAPPER)


class LowRankWorkerExtension(ESWorkerExtension):
    """Keeps the master weights in the model, and members in its adapters."""

    _es_adapters: Adapters
    _es_model_is_master: bool  # whether the model holds the master weights as they are now

    def es_load(self, setup: MasterSetup) -> bool:
        """See :meth:`ESWorkerExtension.es_load`. Raises ``UserError`` if the model allows no direct loading."""
        self._es_model_is_master = False
        if not super().es_load(setup):
            raise UserError(_NOT_DIRECT)
        return True

    def es_load_without_places(self, setup: MasterSetup) -> None:
        """Raise ``UserError``: adapters need a direct loader."""
        raise UserError(_NOT_DIRECT)

    def es_catch_up(self, setup: MasterSetup, catch_up: CatchUp) -> CaughtUp:
        """See :meth:`ESWorkerExtension.es_catch_up`."""
        caught_up = super().es_catch_up(setup, catch_up)
        self._es_model_is_master = False
        if not hasattr(self, "_es_adapters"):
            model, master = self.model_runner.get_model(), self._es_master
            assert master.low_rank
            assert self._es_places
            self._es_adapters = Adapters(model, self._es_places, master.shapes, master.low_rank)
        return caught_up

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """See :meth:`ESWorkerExtension.es_set_weights`. Does nothing if the model holds the master already."""
        if member_seed is not None or not self._es_model_is_master:
            super().es_set_weights(member_seed, scale)
        self._es_model_is_master = member_seed is None

    def es_set_members(self, members: list[tuple[int, float]]) -> None:
        """Write the master into the model, and these members, as seeds and scales, into its adapters."""
        self.es_set_weights(None, 0.0)
        self._es_adapters.write(members)

    def es_update(self, seeds: list[int], coefficients: list[float]) -> int:
        """See :meth:`ESWorkerExtension.es_update`."""
        self._es_model_is_master = False
        return super().es_update(seeds, coefficients)

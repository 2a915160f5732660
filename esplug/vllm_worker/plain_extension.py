"""Worker extension for models that are only evaluated, as vLLM loaded them."""

from esplug.checkpoints.history import CatchUp, CaughtUp
from esplug.vllm_worker.extension import ESWorkerExtension, MasterSetup


class PlainWorkerExtension(ESWorkerExtension):
    """Keeps no master weights and writes none: vLLM changes a quantised model's tensors while it loads them."""

    def es_catch_up(self, setup: MasterSetup, catch_up: CatchUp) -> CaughtUp:
        """Prepare the model. The checksums are 0, because there are no master weights."""
        if not hasattr(self, "_es_undefined"):
            self._es_prepare_model(self.model_runner.get_model())
        return CaughtUp(0, 0)

    def es_set_weights(self, member_seed: int | None, scale: float) -> None:
        """Do nothing: the model holds its own weights. Raises ``RuntimeError`` for a member's weights."""
        if member_seed is not None:
            raise RuntimeError("this engine was started to evaluate the model as it is, not members")

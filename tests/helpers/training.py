"""Engines that outlive a run, and a trainer on them."""

from esplug.checkpoints.history import CaughtUp, History
from esplug.engines.pool import EnginePool
from esplug.trainer import EvolutionStrategiesTrainer


class KeptEngines(EnginePool):
    """Engines that outlive a run. Each run finds them with the base weights, as if just started."""

    def start(self, history: History) -> CaughtUp:
        if not self._seats:
            return super().start(history)
        self._history = history
        return self._ask(self._seats, "catch_up", history.catch_up())[0]

    def close(self) -> None:
        """Not yet."""

    def stop(self) -> None:
        super().close()


class Trainer(EvolutionStrategiesTrainer):
    """A trainer on kept engines."""

    kept: KeptEngines

    def launch_engines(self) -> EnginePool:
        return self.kept

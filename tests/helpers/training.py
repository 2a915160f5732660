"""Engines that several runs share, and a trainer that uses them."""

from esplug.checkpoints.history import CaughtUp, History
from esplug.engines.pool import EnginePool
from esplug.trainer import EvolutionStrategiesTrainer


class KeptEngines(EnginePool):
    """Engines that outlive a run. Each run starts with the base weights, as with new engines."""

    def start(self, history: History) -> CaughtUp:
        if not self._slots:
            return super().start(history)
        self._history = history
        return self._call(self._slots, "catch_up", history.catch_up())[0]

    def close(self) -> None:
        """Keep the engines for the next run."""

    def stop(self) -> None:
        super().close()


class Trainer(EvolutionStrategiesTrainer):
    """A trainer on kept engines."""

    kept: KeptEngines

    def launch_engines(self) -> EnginePool:
        return self.kept

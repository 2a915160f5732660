"""Fine-tune large language models with Evolution Strategies. Importing this loads no heavy library."""

from typing import TYPE_CHECKING, Any

from esplug.hookspecs import Reward, hookimpl

if TYPE_CHECKING:
    from esplug.trainer import EvolutionStrategiesTrainer

__all__ = ["EvolutionStrategiesTrainer", "Reward", "__version__", "hookimpl"]


def __getattr__(name: str) -> Any:
    if name == "EvolutionStrategiesTrainer":
        from esplug.trainer import EvolutionStrategiesTrainer

        return EvolutionStrategiesTrainer
    if name == "__version__":
        from importlib.metadata import version

        return version("esplug")
    raise AttributeError(f"module 'esplug' has no attribute {name!r}")

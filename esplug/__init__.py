"""esplug: fine-tunes large language models with Evolution Strategies.

Importing the package loads none of its modules; its public names are loaded at first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esplug.config import RunConfig
    from esplug.hookspecs import Reward, hookimpl
    from esplug.trainer import EvolutionStrategiesTrainer

    __version__: str

__all__ = ["EvolutionStrategiesTrainer", "Reward", "RunConfig", "__version__", "hookimpl"]

_MODULES = {
    "EvolutionStrategiesTrainer": "esplug.trainer",
    "Reward": "esplug.hookspecs",
    "RunConfig": "esplug.config",
    "hookimpl": "esplug.hookspecs",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("esplug")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'esplug' has no attribute {name!r}")

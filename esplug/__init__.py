"""esplug: fine-tunes large language models with Evolution Strategies.

Importing the package hides CUDA builds that a CPU build of torch cannot load (:mod:`esplug.utils.torch_builds`); its
public names are loaded at first use. Each folder is a room. Its docstring says what lives there, in which process it
runs (the driver is the process that you start) and which rooms it may import: only rooms below it in
``docs/architecture.md``. Every room may import :mod:`esplug.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from esplug.utils.torch_builds import hide_cuda_builds

if TYPE_CHECKING:
    from esplug.config import RunConfig
    from esplug.hookspecs import Reward, StopRun, hookimpl
    from esplug.trainer import EvolutionStrategiesTrainer

    __version__: str

__all__ = ["EvolutionStrategiesTrainer", "Reward", "RunConfig", "StopRun", "__version__", "hookimpl"]

_MODULES = {
    "EvolutionStrategiesTrainer": "esplug.trainer",
    "Reward": "esplug.hookspecs",
    "RunConfig": "esplug.config",
    "StopRun": "esplug.hookspecs",
    "hookimpl": "esplug.hookspecs",
}

hide_cuda_builds()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("esplug")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'esplug' has no attribute {name!r}")

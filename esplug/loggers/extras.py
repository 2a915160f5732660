"""Optional packages of loggers, which esplug's extras install."""

from importlib.util import find_spec

from esplug.errors import PluginError


def require(extra: str) -> None:
    """Check, without importing it, that an optional package is installed.

    Args:
        extra: ``wandb``, ``tensorboard`` or ``trackio``: the name of the logger, the package and the extra.

    Raises:
        PluginError: the package is missing.
    """
    if find_spec(extra) is None:
        raise PluginError(f'logger {extra!r} needs the package {extra}: pip install "esplug[{extra}]"')

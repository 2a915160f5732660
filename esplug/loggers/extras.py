"""Packages that only some loggers need, and that esplug's extras install."""

from importlib.util import find_spec

from esplug.errors import PluginError


def require(extra: str) -> None:
    """See that the package that an extra is named after is there, without importing it.

    A logger asks when it is loaded, which is before anything else of a run is.

    Args:
        extra: ``wandb``, ``tensorboard`` or ``trackio``: logger, package and extra have one name.

    Raises:
        PluginError: it is missing; the message says how to install it.
    """
    if find_spec(extra) is None:
        raise PluginError(f'logger {extra!r} needs the package {extra}: pip install "esplug[{extra}]"')

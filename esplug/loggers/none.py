"""Logger ``none``: writes nothing."""

from esplug.hookspecs import hookimpl


@hookimpl
def log() -> None:
    """Ignore the metrics."""

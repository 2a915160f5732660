"""Logger ``none``: writes nothing."""

from esplug.hookspecs import hookimpl

synchronous = True


@hookimpl
def log() -> None:
    """Ignore the metrics."""

"""Logger ``none``: writes nothing. ``--logging none`` leaves ``jsonl`` alone, which every run has."""

from esplug.hookspecs import hookimpl

synchronous = True


@hookimpl
def log() -> None:
    """Ignore the metrics."""

"""Logger ``none``: writes nothing. With ``--logging none``, a run has only ``jsonl``, which every run has."""

from esplug.hookspecs import hookimpl

synchronous = True


@hookimpl
def log() -> None:
    """Ignore the metrics."""

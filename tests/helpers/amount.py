"""How much the tests do that can do any amount: a part in `make test`, all with ``ESPLUG_SOAK``, as in `make soak`."""

import os

SOAK = "ESPLUG_SOAK" in os.environ


def amount(usual: int, whole: int) -> int:
    """Return how many cases to try."""
    return whole if SOAK else usual

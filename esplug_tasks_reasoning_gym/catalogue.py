"""Catalogue: one example of every generator, in the file ``catalogue.jsonl``.

Making the examples takes half a minute, so the package has them in a file, which
``scripts/reasoning_gym_catalogue.py`` in the esplug repository writes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from esplug.hookspecs import Example

FILE = Path(__file__).with_name("catalogue.jsonl")


def read() -> Sequence[Example]:
    """Return the examples, sorted by name."""
    return [Example(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]

"""Strict JSON files, written atomically."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esplug.utils import atomic_write


def write_json(path: Path, record: Mapping[str, Any], indent: int | None = None) -> None:
    """Write a file, and create its folder if needed."""
    path.parent.mkdir(exist_ok=True)
    text = json.dumps(strict_json(record), ensure_ascii=False, allow_nan=False, default=str, indent=indent)
    atomic_write.write(path, f"{text}\n".encode(errors="backslashreplace"))


def strict_json(value: Any) -> Any:
    """Convert a value for strict JSON: numbers that are not finite become null, keys become strings.

    Scalars of NumPy and 0-d tensors become numbers.
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    return value

"""An engine that takes long, so that faults meet it at work."""

import time
from pathlib import Path
from typing import Any

from esplug.engines.actor import Engine


class LingeringEngine(Engine):
    """An engine that says when it updates and saves, and takes long, until the file ``go`` is in the run's folder.

    Answers take longest, so that a replacement makes the updates that it has missed faster than others follow.
    """

    def __init__(self, log_path: str) -> None:
        super().__init__(log_path)
        self._go = Path(log_path).parents[1] / "go"

    def _linger(self, what: str, seconds: float = 1.0) -> None:
        import ray

        print(f"{what} on {ray.util.get_node_ip_address()}", flush=True)
        if not self._go.exists():
            time.sleep(seconds)

    def generate(self, *arguments: Any) -> Any:
        self._linger("answering", 0.5)
        return super().generate(*arguments)

    def update(self, seeds: list[int], coefficients: list[float]) -> int:
        self._linger("updating")
        return super().update(seeds, coefficients)

    def save(self, folder: str, exact: bool) -> None:
        self._linger("saving")
        super().save(folder, exact)

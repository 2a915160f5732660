"""A process of its own for a test that connects to another Ray cluster than the tests before it."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from tests.helpers.ray_nodes import NodeError


def in_own_process(test: Callable[..., None], *arguments: Any) -> None:
    """Run a test in a process in which no Ray has been: Ray remembers how its first cluster authenticates."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            pool.submit(_without_tokens, test, *arguments).result()
        except NodeError as error:
            pytest.skip(str(error))


def _without_tokens(test: Callable[..., None], *arguments: Any) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_AUTH")]:
        del os.environ[name]
    test(*arguments)

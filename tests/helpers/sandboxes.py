"""Skips tests of a sandbox where it cannot work, with the reason."""

import functools

import pytest

from esplug_tasks_code.proof import proven
from esplug_tasks_code.sandbox import Limits


@functools.cache
def _fault(kind: str) -> str:
    try:
        proven(kind, Limits())
    except ValueError as error:
        return str(error)
    return ""


def available(kind: str) -> None:
    """Skip the test if bubblewrap does not work here. The sandbox ``rlimits`` must always work."""
    fault = _fault(kind)
    if fault and kind == "bubblewrap":
        pytest.skip(fault)
    assert not fault

"""Update of the weights: rewards to utilities, and coefficients to a movement that every engine makes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from esplug.checkpoints.history import History
from esplug.checkpoints.seed_log_records import Step, movement
from esplug.config import RunConfig
from esplug.engines import EnginePool
from esplug.errors import RunError
from esplug.es.update import FloatArray
from esplug.utils.console import say


def shaped(shape: Callable[..., Any], name: str, rewards: FloatArray) -> FloatArray:
    """Shape the rewards float64[N, B] to utilities float64[N], with the ``shape`` hook of the shaping ``name``.

    Raises:
        RunError: the result has another shape, or is not finite.
    """
    size, utilities = len(rewards), np.asarray(shape(rewards=rewards), dtype=np.float64)
    if utilities.shape != (size,) or not np.isfinite(utilities).all():
        raise RunError(f"reward shaping {name!r} must return {size} finite utilities, not {utilities.tolist()}")
    return utilities


def make_update(
    config: RunConfig,
    engines: EnginePool,
    history: History,
    iteration: int,
    coefficients: Sequence[float],
    checksum: int,
) -> Step:
    """Add the members' noise, times their coefficients, to the weights of all engines, and to the history.

    ``checksum`` is that of the weights before the update.

    Raises:
        RunError: a coefficient is not finite in float32, or the engines' weights differ.
    """
    if not np.isfinite(coefficients).all():
        raise RunError(f"{config.reward_shaping!r} makes utilities of these rewards that are too large for float32")
    step = Step(iteration, tuple(coefficients), config.antithetic, checksum, config.momentum)
    seeds, scales = movement([*history.steps, step], config.seed)
    if not any(coefficients):
        effect = "only momentum moves the weights" if seeds else "no update"
        say(f"iteration {iteration}: every utility is zero (all rewards equal?), so {effect}")
    if seeds:
        step = replace(step, checksum=engines.update(seeds, scales))
    history.append(step)
    return step

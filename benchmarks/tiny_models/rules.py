"""Rules that set the step of each iteration (alpha as a multiple of sigma), tried on the tiny models.

All but ``path`` read rewards only, so that the coefficients, and with them the weights, follow from the seed log.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from benchmarks.tiny_models.models import Model, Rows

if TYPE_CHECKING:
    from benchmarks.tiny_models.es import Arm

LOWEST, HIGHEST = 0.25, 16.0


@dataclass(frozen=True)
class Iteration:
    """What a rule may look at. ``direction`` is the update at step 1."""

    model: Model
    master: Tensor
    direction: Tensor
    rewards: np.ndarray
    prompts: Rows


def signal_share(rewards: np.ndarray) -> float:
    """Return the share of the variance of the members' means that the choice of prompts does not explain."""
    members, prompts = rewards.shape
    means = rewards.mean(axis=1)
    residual = rewards - rewards.mean(axis=0) - means[:, None] + means.mean()
    noise = (residual**2).sum() / (members - 1) / (prompts - 1) / prompts
    variance = means.var(ddof=1)
    return float(max(0.0, 1 - noise / variance)) if variance else 0.0


class Curvature:
    """Step at which the expected gain of a quadratic reward is largest, from one more member without noise.

    A step changes the reward by ``step * s - step**2 / N * c``, where ``s`` is the standard deviation of the members'
    mean rewards without that of the prompts' choice, and ``c`` the reward that a member loses by its noise on average.
    The largest gain is at ``N * s / (2 * c)``. Both are averaged over iterations.
    """

    extra = 1
    keep = 0.7

    def __init__(self, arm: "Arm") -> None:
        self.members, self.start = arm.members, arm.step
        self.s = self.c = self.weight = 0.0

    def __call__(self, now: Iteration) -> float:
        unperturbed = float(now.model.rewards(now.master, now.prompts).mean())
        means = now.rewards.mean(1)
        self.s = self.keep * self.s + means.std() * math.sqrt(signal_share(now.rewards))
        self.c = self.keep * self.c + unperturbed - means.mean()
        self.weight = self.keep * self.weight + 1
        if self.c <= 0:
            return HIGHEST if self.weight > 2 else self.start
        return float(np.clip(self.members * self.s / 2 / self.c, LOWEST, HIGHEST))


class TwoPoint:
    """Two-point step-size adaptation (Hansen 2008, arXiv 0805.0231): two more members took the last step, too.

    One took it at half, one at twice its length. The step grows or shrinks with the difference of their rewards on the
    prompts of this iteration, which did not decide the direction.
    """

    extra = 2
    rate = 0.4

    def __init__(self, arm: "Arm") -> None:
        self.step = arm.step
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, now: Iteration) -> float:
        if self.last is not None:
            master, moved = self.last
            long, short = (now.model.rewards(master + share * moved, now.prompts).numpy()[0] for share in (2, 0.5))
            difference = long - short
            error = difference.std(ddof=1) / math.sqrt(len(difference))
            if error > 0:
                self.step *= math.exp(self.rate * math.tanh(difference.mean() / error))
            self.step = float(np.clip(self.step, LOWEST, HIGHEST))
        self.last = now.master, self.step * now.direction
        return self.step


class Agreement:
    """Step in proportion to minus the correlation of mirrored pairs, averaged over iterations."""

    extra = 0
    keep = 0.7

    def __init__(self, arm: "Arm") -> None:
        self.step, self.total, self.weight = arm.step, 0.0, 0.0

    def __call__(self, now: Iteration) -> float:
        from esplug.es.members import mirrored_correlation

        found = mirrored_correlation(now.rewards)
        if math.isfinite(found):
            self.total, self.weight = self.keep * self.total - found, self.keep * self.weight + 1
        return self.step * max(0.1, self.total / self.weight) if self.weight else self.step


class Path:
    """Cumulative step-size adaptation (Hansen and Ostermeier 2001): longer where successive updates agree.

    The path's squared length is 1 in expectation if updates are independent. It needs the noise itself.
    """

    extra = 0
    decay = 0.3

    def __init__(self, arm: "Arm") -> None:
        self.step, self.path = arm.step, 0.0

    def __call__(self, now: Iteration) -> float:
        unit = now.direction / now.direction.norm().clamp(min=1e-12)
        first = isinstance(self.path, float)
        self.path = unit if first else (1 - self.decay) * self.path + math.sqrt(self.decay * (2 - self.decay)) * unit
        self.step *= math.exp(self.decay * (float(self.path.norm()) - 1))
        return self.step


RULES = {"curvature": Curvature, "two-point": TwoPoint, "agreement": Agreement, "path": Path}

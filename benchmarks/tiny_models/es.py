"""Evolution Strategies on the models of ``models.py``: runs of seconds, one for each arm and seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_models.models import KINDS, VARIANTS, Model, Rows, load, splits
from benchmarks.tiny_models.rules import RULES, Iteration, signal_share
from esplug.es.members import mirrored_correlation
from esplug.es.schedules import Schedule, scheduled
from esplug.es.update import normalized
from esplug.noise.full_rank import member_seed
from esplug.shaping import Floats, member_means, standardized

EVERY = 2  # iterations between evaluations


@dataclass(frozen=True)
class Arm:
    """Settings of a run.

    Attributes:
        step: alpha as a multiple of sigma.
        members: answers to each prompt, those that a rule needs included.
        noise: ``independent``, ``equal`` in tensors of equal shape, or ``signs``: equal up to a sign for every tensor.
        shaping: a key of :data:`SHAPINGS`.
        normalize: whether to scale the utilities to a root mean square of 1.
        scales: for each of ``models.KINDS`` of tensors, what multiplies sigma. All see the same draws.
        reuse: weight of the last iteration's members in the update, next to 1 for those of this one. As utilities sum
            to 0, it does not matter that the weights have moved since.
        rule: a key of ``rules.RULES``, which sets the step of each iteration; None follows the schedule.
    """

    sigma: float = 0.002
    step: float = 2.0
    schedule: Schedule = "constant"
    noise: str = "independent"
    members: int = 16
    prompts: int = 32
    iterations: int = 16
    shaping: str = "z-scores"
    mirrored: bool = False
    normalize: bool = False
    scales: tuple[float, ...] = (1,) * len(KINDS)
    reuse: float = 0.0
    rule: str | None = None


def shrunk(rewards: Floats) -> Floats:
    """Return z-scores times the square root of :func:`signal_share`."""
    return standardized(member_means(rewards)) * np.sqrt(signal_share(rewards))


def ranks(rewards: Floats) -> Floats:
    from esplug.shaping.centered_ranks import shape

    return np.asarray(shape(rewards))


SHAPINGS: dict[str, Callable[[Floats], Floats]] = {
    "z-scores": lambda rewards: standardized(member_means(rewards)),
    "z-scores-per-prompt": lambda rewards: member_means(standardized(rewards)),
    "centered-ranks": ranks,
    "shrunk": shrunk,
}


@cache
def setting(variant: str) -> tuple[Model, Tensor, Rows, Rows]:
    return *load(variant), *splits(VARIANTS[variant].task)


def draw_noise(model: Model, members: int, seed: int, kind: str = "independent", signs: int = 0) -> Tensor:
    """Draw float32[members, size]. Equal seeds give the same numbers on any number of calls."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    if kind == "independent":
        return torch.randn(members, model.size, generator=generator)
    noise = torch.empty(members, model.size)
    shared: dict[tuple[int, ...], Tensor] = {}
    flip = torch.Generator().manual_seed(signs)
    for tensor, shape in zip(model.tensors(noise).values(), model.shapes.values(), strict=True):
        if shape not in shared:
            shared[shape] = torch.randn(members, *shape, generator=generator)
        sign = 1 if kind == "equal" else int(torch.randint(2, (), generator=flip)) * 2 - 1
        tensor.copy_(shared[shape] * sign)
    return noise


def draw_prompts(rows: Rows, count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed % 2**63)
    total = len(rows.ids)
    order = torch.cat([torch.randperm(total, generator=generator) for _ in range(-(-count // total))])
    return rows[order[:count]]


def pair_figures(rewards: Floats) -> tuple[float | None, float]:
    """Return mirrored members' correlation, if defined, and the share of prompts on which all rewards are equal."""
    correlation = mirrored_correlation(rewards)
    equal = float((np.ptp(rewards, axis=0) == 0).mean())
    return None if math.isnan(correlation) else round(correlation, 3), round(equal, 3)


def run(variant: str, arm: Arm, seed: int) -> dict[str, Any]:
    """Train once.

    Returns the held-out reward every :data:`EVERY` iterations, that of the mean of the last 2, 4 and 8 masters, each
    step, what :func:`pair_figures` says of each population, and the last weights.
    """
    model, master, train, held_out = setting(variant)
    rule = RULES[arm.rule](arm) if arm.rule else None
    members = arm.members - rule.extra if rule else arm.members
    masters = [master]
    last: Tensor | None = None
    curve, steps = [round(float(model.rewards(master, held_out).mean()), 4)], []
    pairs = []
    for iteration in range(arm.iterations):
        step = scheduled(arm.schedule, arm.step, arm.step / 10, iteration / arm.iterations)
        prompts = draw_prompts(train, arm.prompts, member_seed(seed, iteration, 0))
        count = members // 2 if arm.mirrored else members
        noise = draw_noise(model, count, member_seed(seed, iteration, 1), arm.noise, seed)
        if set(arm.scales) != {1}:
            noise *= model.scales(arm.scales)
        if arm.mirrored:
            noise = torch.stack([noise, -noise], 1).flatten(0, 1)
        rewards = model.rewards(master + arm.sigma * noise, prompts).numpy()
        if arm.mirrored:
            pairs.append(pair_figures(rewards))
        utilities = SHAPINGS[arm.shaping](rewards)
        if arm.normalize:
            utilities = normalized(utilities)
        direction = torch.from_numpy(utilities / members).float()[None] @ noise * arm.sigma
        if arm.reuse:
            fresh = direction
            if last is not None:
                direction = (fresh + arm.reuse * last) / (1 + arm.reuse)
            last = fresh
        if rule:
            step = rule(Iteration(model, master, direction, rewards, prompts))
        master = master + step * direction
        masters = [*masters, master][-8:]
        steps.append(round(float(step), 4))
        if iteration % EVERY != EVERY - 1:
            continue
        curve.append(round(float(model.rewards(master, held_out).mean()), 4))
    means = torch.cat([torch.cat(masters[-last:]).mean(0, keepdim=True) for last in (2, 4, 8)])
    averaged = [round(value, 4) for value in model.rewards(means, held_out).mean(1).tolist()]
    return {"curve": curve, "averaged": averaged, "steps": steps, "pairs": pairs, "master": master}

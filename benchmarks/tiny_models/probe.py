r"""Slope and curvature that noise of each kind meets, and what one update gains: is equal noise quicker?

    python -m benchmarks.tiny_models.probe

``L`` is the mean log probability of the right answers, a smooth counterpart of the reward, with gradient ``g`` and
Hessian ``H``. A step along ``eps`` changes it by ``sigma * eps.g + sigma**2 / 2 * eps.H.eps``. Independent noise has
``Var(eps.g) = |g|**2``. Noise that is equal in tensors of equal shape has ``|Pg|**2``, where ``P`` sums the gradients
of those tensors. Cells hold the three kinds of noise in the order of :data:`KINDS`.

A second table says what a population is worth after its own update, by importance weights.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.tiny_models.__main__ import SIGMAS
from benchmarks.tiny_models.es import SHAPINGS, Arm, draw_noise, draw_prompts, run, setting
from benchmarks.tiny_models.models import Model, Rows
from esplug.noise.full_rank import member_seed

STEPS = (0.5, 1.0, 2.0, 4.0, 8.0)
POPULATIONS = 12
MEMBERS = 16
KINDS = ("independent", "equal", "signs")


def slope_ratio(model: Model, master: Tensor, rows: Rows) -> float:
    """Return ``|Pg| / |g|``."""
    weights = master.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_likelihood(weights, rows).sum(), weights)
    sums: dict[tuple[int, ...], Tensor] = {}
    for name, part in model.tensors(gradient).items():
        sums[model.shapes[name]] = sums.get(model.shapes[name], torch.zeros(())) + part
    return math.sqrt(sum(float(part.pow(2).sum()) for part in sums.values())) / float(gradient.norm())


@torch.no_grad()
def measure(variant: str, master: Tensor, kind: str) -> dict[str, list[float]]:
    """Measure slopes and curvatures of members, and the norm and gains at :data:`STEPS` of updates."""
    model, _, train, held_out = setting(variant)
    sigma, rows = SIGMAS[variant], draw_prompts(train, 32, 0)
    before = float(model.log_likelihood(master, rows))
    reward = float(model.rewards(master, held_out).mean())
    found: dict[str, list[float]] = {"slope": [], "curvature": [], "norm": [], **{f"step {s:g}": [] for s in STEPS}}
    for k in range(POPULATIONS):
        noise = draw_noise(model, MEMBERS, member_seed(7, k, 1), kind, k)
        up, down = (model.log_likelihood(master + sign * sigma * noise, rows) for sign in (1, -1))
        found["slope"] += ((up - down) / 2 / sigma).tolist()
        found["curvature"] += ((up + down - 2 * before) / sigma**2).tolist()
        rewards = model.rewards(master + sigma * noise, draw_prompts(train, 32, member_seed(7, k, 0))).numpy()
        update = torch.from_numpy(SHAPINGS["z-scores"](rewards) / MEMBERS).float()[None] @ noise * sigma
        found["norm"].append(float(update.norm()) / sigma / math.sqrt(model.size / MEMBERS))
        moved = model.rewards(master + torch.tensor(STEPS)[:, None] * update, held_out).mean(1)
        for step, value in zip(STEPS, moved.tolist(), strict=True):
            found[f"step {step:g}"].append(value - reward)
    return found


def overlap(variant: str, master: Tensor, step: float = 3.0) -> dict[str, list[float]]:
    """Measure the importance weights of members for the Gaussian around the weights that their update leads to.

    With an update of ``sigma * delta``, a member has the log weight ``eps.delta - |delta|**2 / 2``.

    Returns:
        For each population ``|delta|``, the effective number of members ``sum(w)**2 / sum(w**2)``, and how far apart
        the two largest log weights are.
    """
    model, _, train, _ = setting(variant)
    found: dict[str, list[float]] = {"distance": [], "effective": [], "gap": []}
    for k in range(POPULATIONS):
        noise = draw_noise(model, MEMBERS, member_seed(7, k, 1))
        prompts = draw_prompts(train, 32, member_seed(7, k, 0))
        utilities = SHAPINGS["z-scores"](model.rewards(master + SIGMAS[variant] * noise, prompts).numpy())
        delta = step * torch.from_numpy(utilities / MEMBERS) @ noise.double()
        logs = noise.double() @ delta - delta.square().sum() / 2
        weights = logs.softmax(0)
        first, second = logs.topk(2).values.tolist()
        found["distance"].append(float(delta.norm()))
        found["effective"].append(float(1 / weights.square().sum()))
        found["gap"].append(first - second)
    return found


def places() -> Iterator[tuple[str, str, Tensor]]:
    """Yield where to measure: a label, the model, and its weights after 0 and 6 iterations."""
    for variant, sigma in SIGMAS.items():
        yield f"{variant}, 0", variant, setting(variant)[1]
        yield f"{variant}, 6", variant, run(variant, Arm(sigma=sigma, iterations=6), 0)["master"]


def print_overlaps(at: Sequence[tuple[str, str, Tensor]]) -> None:
    print("| model, iterations | distance in sigmas | effective members, mean and most | gap of log weights, median |")
    print("|---" * 4 + "|")
    for label, variant, master in at:
        found = overlap(variant, master)
        effective = cell([np.mean(found["effective"]), max(found["effective"])], 2)
        cells = [f"{np.mean(found['distance']):.0f}", effective, f"{np.median(found['gap']):.0f}"]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def cell(values: Sequence[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


def main() -> None:
    torch.set_num_threads(1)
    columns = [
        "model, iterations",
        "norm",
        "exact slope, equal",
        "std of slopes",
        "curvature",
        "gain, step 2",
        "step 8",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    at = list(places())
    for label, variant, master in at:
        model, _, train, _ = setting(variant)
        found = [measure(variant, master, kind) for kind in KINDS]
        cells = [
            cell([np.mean(each["norm"]) for each in found], 3),
            f"{slope_ratio(model, master, draw_prompts(train, 32, 0)):.2f}",
            cell([np.std(each["slope"]) for each in found], 2),
            cell([np.mean(each["curvature"]) for each in found], 0),
            *(cell([np.mean(each[f"step {step}"]) for each in found], 3) for step in (2, 8)),
        ]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)
    print_overlaps(at)


if __name__ == "__main__":
    main()

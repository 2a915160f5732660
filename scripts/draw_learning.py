"""Draw the learning curves of the docs from results of the benchmarks: ``python -m scripts.draw_learning``.

``learning.svg`` shows noise of full and of low rank by iteration, ``grpo.svg`` ES and GRPO by generated answers, and
``steps.svg`` three steps of ES on sums and differences.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "images"
KINDS = ROOT / "benchmarks" / "gpu" / "results" / "countdown-curve-h200.json"
LEFT, RIGHT, TOP, BOTTOM = 64, 660, 24, 270
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f")
#: Arms of the learning benchmark, by the names that the picture gives them.
ARMS = {
    "GRPO, rate 3e-5": "GRPO, 8 answers a prompt, rate 3e-05",
    "GRPO, rate 3e-6": "GRPO, 8 answers a prompt, rate 3e-06",
    "ES, larger sigma": "twice sigma, alpha x 12",
    "ES, --recipe fast": "fast",
    "ES, as in the paper": "paper",
}
Point = tuple[float, float, float, float]  # place on the x axis, mean, ends of its interval


def svg(
    curves: Mapping[str, Sequence[Point]], title: str, axes: tuple[str, str], ticks: Sequence[float], step: int
) -> str:
    """Draw a line with its interval for each curve, with a tick at every ``step`` of the x axis."""
    last = max(point[0] for points in curves.values() for point in points)

    def at(place: float, value: float) -> tuple[float, float]:
        x = LEFT + (RIGHT - LEFT) * place / last
        return round(x, 1), round(BOTTOM - (BOTTOM - TOP) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)

    def path(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in points)

    lines = []
    for tick in ticks:
        x, y = at(0, tick)
        lines.append(
            f'  <path class="grid" d="M{x} {y}H{RIGHT}"/><text x="{LEFT - 36}" y="{y + 4:.0f}">{tick:.2f}</text>'
        )
    for place in range(0, int(last) + 1, step):
        lines.append(
            f'  <text x="{at(place, ticks[0])[0]:.0f}" y="{BOTTOM + 20}" text-anchor="middle">{place:,}</text>'
        )
    labels = []
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        band = [at(x, low) for x, _, low, _ in points] + [at(x, high) for x, _, _, high in reversed(points)]
        lines.append(f'  <polygon points="{path(band)}" fill="{colour}" fill-opacity="0.1"/>')
        middle = path([at(x, mean) for x, mean, _, _ in points])
        lines.append(f'  <polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        labels.append((at(*points[-1][:2])[1] + 4, colour, f"{name} {points[-1][1]:.3f}"))
    below = 0.0
    for y, colour, label in sorted(labels):
        below = max(y, below + 17)  # labels must not overlap
        lines.append(f'  <text x="{RIGHT + 8}" y="{below:.0f}" style="fill: {colour}">{label}</text>')
    where = {"middle": (LEFT + RIGHT) // 2, "below": BOTTOM + 42}
    return _FRAME.format(body="\n".join(lines), title=title, x_axis=axes[0], y_axis=axes[1], **where)


_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 320" role="img" aria-labelledby="title">
  <title id="title">{title}</title>
  <style>
    text {{ font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #52606d; }}
    .grid {{ stroke: #9fb3a9; stroke-opacity: 0.4; }}
    @media (prefers-color-scheme: dark) {{ text {{ fill: #b8c2cc; }} }}
  </style>
{body}
  <text x="{middle}" y="{below}" text-anchor="middle">{x_axis}</text>
  <text x="8" y="14">{y_axis}</text>
</svg>
"""


def by_noise() -> dict[str, list[Point]]:
    """Return pass@1 by iteration for each kind of noise."""
    rows = json.loads(KINDS.read_text(encoding="utf-8"))["rows"]
    curves = {}
    for name, group in groupby(rows, key=lambda row: row["perturbation"]):
        numbers = [(row["iteration"], *re.findall(r"[\d.]+", row["pass@1"])) for row in group]
        curves[name] = [tuple(map(float, each)) for each in numbers]
    return curves


def by_arm(study: str, arms: Mapping[str, str]) -> dict[str, list[Point]]:
    """Return the held-out reward by answers for each arm of a study, as far as the shortest curve goes."""
    from benchmarks.learning.report import curve
    from esplug.evaluation.statistics import mean_estimate

    found = {name: curve(study, arm) for name, arm in arms.items()}
    last = min(max(points) for points in found.values())
    return {
        name: [
            (answers, (estimate := mean_estimate(rewards)).mean, estimate.low, estimate.high)
            for answers, rewards in points.items()
            if answers <= last
        ]
        for name, points in found.items()
    }


def main() -> None:
    """Draw the pictures."""
    from benchmarks.learning.studies import STEPS

    puzzles = "on held-out puzzles"
    learning = svg(
        by_noise(),
        f"pass@1 {puzzles} by iteration, with 95% intervals",
        ("iteration", "pass@1"),
        (0.2, 0.25, 0.3, 0.35, 0.4),
        10,
    )
    (PICTURES / "learning.svg").write_text(learning, encoding="utf-8")
    axes = ("generated answers", "reward")
    title = f"Reward {puzzles} by generated answers, with 95% intervals"
    grpo = svg(by_arm("countdown", ARMS), title, axes, (0.3, 0.35, 0.4, 0.45, 0.5), 3072)
    (PICTURES / "grpo.svg").write_text(grpo, encoding="utf-8")
    title = "Reward on held-out sums and differences by generated answers, with 95% intervals"
    steps = svg(by_arm("arithmetic", {name: name for name in STEPS}), title, axes, (0.2, 0.3, 0.4, 0.5), 6144)
    (PICTURES / "steps.svg").write_text(steps, encoding="utf-8")


if __name__ == "__main__":
    main()

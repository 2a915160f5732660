"""Draw docs/images/learning.svg from a result of the benchmarks: ``python -m scripts.draw_learning RESULT.json``.

The result's rows have ``perturbation``, ``iteration`` and ``pass@1`` with its 95% interval, such as
``0.244 [0.208, 0.284]``.
"""

import json
import re
import sys
from itertools import groupby
from pathlib import Path

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "learning.svg"
LEFT, RIGHT, TOP, BOTTOM = 64, 700, 24, 270
COLOURS = ("#0072b2", "#d55e00")
TICKS = (0.2, 0.25, 0.3, 0.35, 0.4)


def svg(rows: list[dict[str, str]]) -> str:
    """Draw one line with its interval per value of ``perturbation``."""
    last = max(int(row["iteration"]) for row in rows)

    def at(iteration: float, value: float) -> str:
        x = LEFT + (RIGHT - LEFT) * iteration / last
        y = BOTTOM - (BOTTOM - TOP) * (value - TICKS[0]) / (TICKS[-1] - TICKS[0])
        return f"{x:.1f},{y:.1f}"

    lines = []
    for tick in TICKS:
        x, y = at(0, tick).split(",")
        lines.append(
            f'  <path class="grid" d="M{x} {y}H{RIGHT}"/><text x="{LEFT - 36}" y="{float(y) + 4:.0f}">{tick:.2f}</text>'
        )
    for iteration in range(0, last + 1, 10):
        x = at(iteration, 0).split(",")[0]
        lines.append(f'  <text x="{float(x) - 7:.0f}" y="{BOTTOM + 20}">{iteration}</text>')
    for (name, group), colour in zip(groupby(rows, key=lambda row: row["perturbation"]), COLOURS, strict=True):
        points = [(int(row["iteration"]), *map(float, re.findall(r"[\d.]+", row["pass@1"]))) for row in group]
        band = [at(i, low) for i, _, low, _ in points] + [at(i, high) for i, _, _, high in reversed(points)]
        middle = " ".join(at(i, mean) for i, mean, _, _ in points)
        lines.append(f'  <polygon points="{" ".join(band)}" fill="{colour}" fill-opacity="0.13"/>')
        lines.append(f'  <polyline points="{middle}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        _, y = at(0, points[-1][1]).split(",")
        label = f"{name} {points[-1][1]:.3f}"
        offset = 14 if colour == COLOURS[0] else -4
        lines.append(f'  <text x="{RIGHT + 8}" y="{float(y) + offset:.0f}" style="fill: {colour}">{label}</text>')
    return _FRAME.format(body="\n".join(lines), middle=(LEFT + RIGHT) // 2 - 30, below=BOTTOM + 42)


_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 840 320" role="img" aria-labelledby="title">
  <title id="title">pass@1 on held-out puzzles by iteration, with 95% intervals</title>
  <style>
    text {{ font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #52606d; }}
    .grid {{ stroke: #9fb3a9; stroke-opacity: 0.4; }}
    @media (prefers-color-scheme: dark) {{ text {{ fill: #b8c2cc; }} }}
  </style>
{body}
  <text x="{middle}" y="{below}">iteration</text>
  <text x="8" y="14">pass@1</text>
</svg>
"""


def main() -> None:
    """Draw the result that the command line names."""
    (result,) = sys.argv[1:]
    PICTURE.write_text(svg(json.loads(Path(result).read_text(encoding="utf-8"))["rows"]), encoding="utf-8")


if __name__ == "__main__":
    main()

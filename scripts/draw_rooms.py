"""Draw docs/images/rooms.svg: which rooms of esplug import which, read from the source.

``python -m scripts.draw_rooms`` writes the picture; with ``--check`` it fails if the picture is out of date.
Both fail if rooms import each other in a cycle.
"""

import itertools
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "rooms.svg"
WIDTH, ROW, BOX, COLUMN = 880, 62, (112, 30), 150

#: A room's name, or an edge (importer, imported) where it crosses a row between its ends.
Node = str | tuple[str, str]


def imports() -> dict[str, set[str]]:
    """Map every room and top-level module to those that it imports. ``__main__`` and ``__init__`` are left out."""
    import grimp

    graph = grimp.build_graph("esplug", cache_dir=None)
    rooms = graph.find_children("esplug") - {"esplug.__main__"}
    for room in rooms:
        graph.squash_module(room)
    return {
        room.removeprefix("esplug."): {
            other.removeprefix("esplug.") for other in graph.find_modules_directly_imported_by(room) & rooms - {room}
        }
        for room in sorted(rooms)
    }


def bottom_up(arrows: dict[str, set[str]]) -> list[str]:
    """Sort rooms so that each comes after those that it imports.

    Raises:
        SystemExit: Rooms import each other in a cycle; the message names them.
    """
    try:
        return list(TopologicalSorter({room: sorted(arrows[room]) for room in sorted(arrows)}).static_order())
    except CycleError as error:
        raise SystemExit("rooms import each other: " + " <- ".join(error.args[1])) from None


def reduced(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Drop every arrow that a longer path implies (the transitive reduction)."""
    reached: dict[str, set[str]] = {}
    for room in bottom_up(arrows):
        reached[room] = arrows[room].union(*(reached[other] for other in arrows[room]))
    return {room: others - set().union(*(reached[other] for other in others)) for room, others in arrows.items()}


def rows(arrows: dict[str, set[str]]) -> list[list[Node]]:
    """Put each room on the row below its lowest importer, with a node wherever a long arrow crosses a row."""
    depth = dict.fromkeys(arrows, 0)
    for room in reversed(bottom_up(arrows)):
        for other in arrows[room]:
            depth[other] = max(depth[other], depth[room] + 1)
    result: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for room in sorted(depth):
        result[depth[room]].append(room)
        for other in sorted(arrows[room]):
            for row in result[depth[room] + 1 : depth[other]]:
                row.append((room, other))
    return result


def path(room: str, other: str, layout: list[list[Node]]) -> list[Node]:
    """List the nodes that the arrow from room to other passes, with both ends."""
    return [room, *((room, other) for row in layout if (room, other) in row), other]


def positions(arrows: dict[str, set[str]]) -> dict[tuple[int, Node], tuple[float, float]]:
    """Place nodes, keyed by row and node: neighbours of a row are ordered by the mean place of what they connect to."""
    layout = rows(arrows)
    row_of = {node: number for number, row in enumerate(layout) for node in row if isinstance(node, str)}
    links: dict[tuple[int, Node], list[tuple[int, Node]]] = {
        (n, node): [] for n, row in enumerate(layout) for node in row
    }
    for room, others in arrows.items():
        for other in sorted(others):
            nodes = list(enumerate(path(room, other, layout), start=row_of[room]))
            for above, below in itertools.pairwise(nodes):
                links[above].append(below)
                links[below].append(above)
    place = dict.fromkeys(links, 0.0)
    for sweep in range(24):
        order = range(len(layout)) if sweep % 2 == 0 else reversed(range(len(layout)))
        for number in order:
            keys = [(number, node) for node in layout[number]]
            wanted = {key: sum(place[link] for link in links[key]) / max(1, len(links[key])) for key in keys}
            keys.sort(key=lambda key: (wanted[key], str(key[1])))
            for index, key in enumerate(keys):
                place[key] = (index - (len(keys) - 1) / 2) * COLUMN
    return {key: (WIDTH / 2 + x, BOX[1] / 2 + 20 + key[0] * ROW) for key, x in place.items()}


def svg(arrows: dict[str, set[str]]) -> str:
    """Draw the rooms; arrows point from the importer to what it imports."""
    arrows = reduced(arrows)
    layout, place = rows(arrows), positions(arrows)
    row_of = {node: number for number, row in enumerate(layout) for node in row if isinstance(node, str)}
    lines = []
    for room, others in arrows.items():
        for other in sorted(others):
            nodes = list(enumerate(path(room, other, layout), start=row_of[room]))
            points = [place[key] for key in nodes]
            (x, y), (end_x, end_y) = points[0], points[-1]
            curve = [f"M{x:.0f} {y + BOX[1] / 2:.0f}"]
            points = [(x, y + BOX[1] / 2), *points[1:-1], (end_x, end_y - BOX[1] / 2 - 2)]
            for (x, y), (to_x, to_y) in itertools.pairwise(points):
                middle = (y + to_y) / 2
                curve.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
            lines.append(f'  <path class="line" marker-end="url(#to)" d="{" ".join(curve)}"/>')
    for room in arrows:
        x, y = place[row_of[room], room]
        box = f'x="{x - BOX[0] / 2:.0f}" y="{y - BOX[1] / 2:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6"'
        lines.append(f'  <rect class="box" {box}/><text x="{x:.0f}" y="{y + 5:.0f}">{room}</text>')
    return _FRAME.format(width=WIDTH, height=len(layout) * ROW, body="\n".join(lines))


_FRAME = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title">
  <title id="title">Rooms of esplug: arrows point from a room to the rooms that it imports</title>
  <style>
    text {{ font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2933; text-anchor: middle; }}
    .box {{ fill: #ffffff; stroke: #0b6e4f; }}
    .line {{ stroke: #52606d; stroke-width: 1.4; fill: none; }}
    .head {{ fill: #52606d; }}
    @media (prefers-color-scheme: dark) {{
      text {{ fill: #e4e7eb; }}
      .box {{ fill: #262b30; stroke: #5ad1a5; }}
      .line {{ stroke: #9aa5b1; }}
      .head {{ fill: #9aa5b1; }}
    }}
  </style>
  <defs>
    <marker id="to" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
      <path class="head" d="M0 0 10 5 0 10z"/>
    </marker>
  </defs>
{body}
</svg>
"""


def main() -> None:
    """Write the picture, or compare it."""
    picture = svg(imports())
    if "--check" not in sys.argv:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
        raise SystemExit(f"{PICTURE.name} is out of date: run python -m scripts.draw_rooms")


if __name__ == "__main__":
    main()

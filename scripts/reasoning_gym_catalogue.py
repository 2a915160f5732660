"""Writer of the reasoning-gym task's catalogue: ``python -m scripts.reasoning_gym_catalogue``.

Run it when the task package requires another version of the library. An example is the first row of a generator with
its default options and seed 0, cut to a length that a table can show.
"""

import json

from esplug_tasks_reasoning_gym.catalogue import FILE
from esplug_tasks_reasoning_gym.rows import Wanted
from esplug_tasks_reasoning_gym.selection import ALL, Selection

LONGEST = 300  # characters of a question or an answer


def main() -> None:
    """Write the file."""
    held_out = Wanted(Selection.of(ALL, ()), seed=0, size=1, eval_size=1).held_out()
    rows = [row for rows in held_out.values() for row in rows]
    shown = (
        {"name": row["task"]} | {key: (row[key] or "")[:LONGEST] for key in ("question", "answer")} for row in rows
    )
    FILE.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in shown), encoding="utf-8")


if __name__ == "__main__":
    main()

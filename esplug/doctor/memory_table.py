"""Table of the engines' memory use, for people."""

from rich.table import Table

from esplug.planning.memory import MemoryPlan, Place, size


def memory_table(memory: MemoryPlan) -> Table:
    """Return a table with one row per item, and a total for each place."""
    plan = memory.plan
    columns = ("", "where", "per engine", f"all {plan.n_engines}")
    table = Table(*columns, title="memory", title_justify="left", box=None)
    spans = {"memory": 1, "GPU": plan.gpus_per_engine}
    for item in memory.items:
        nbytes = spans[item.place] * item.nbytes
        table.add_row(item.what, item.place, size(nbytes), size(plan.n_engines * nbytes))
    places: list[Place] = ["memory", "GPU"] if memory.gpu else ["memory"]
    for place in places:
        name = "total" if place == "memory" else "total per GPU"
        table.add_row(name, place, "", f"{size(memory.used(place))} of {size(memory.available(place))} free")
    return table

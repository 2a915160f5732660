"""What engines take of memory, as a table for people."""

from rich.table import Table

from esplug.planning.memory import MemoryPlan, Place, size


def memory_table(memory: MemoryPlan) -> Table:
    """Return what engines take, as a table."""
    plan = memory.plan
    table = Table("", "where", "each engine", f"all {plan.n_engines}", title="memory", title_justify="left", box=None)
    spans = {"memory": 1, "GPU": plan.gpus_per_engine}
    for item in memory.items:
        nbytes = spans[item.place] * item.nbytes
        table.add_row(item.what, item.place, size(nbytes), size(plan.n_engines * nbytes))
    places: list[Place] = ["memory", "GPU"] if memory.gpu else ["memory"]
    for place in places:
        what = "sum" if place == "memory" else "sum on each GPU"
        table.add_row(what, place, "", f"{size(memory.used(place))} of {size(memory.available(place))} free")
    return table

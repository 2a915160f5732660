"""What engines take of memory, as a table for people."""

from rich.table import Table

from esplug.memory import MemoryPlan, Place, size


def memory_table(memory: MemoryPlan) -> Table:
    """Return what engines take, as a table."""
    plan = memory.plan
    table = Table("", "where", "each engine", f"all {plan.n_engines}", title="memory", title_justify="left", box=None)
    for item in memory.items:
        engines = plan.n_engines
        table.add_row(item.what, item.place, size(item.nbytes), size(engines * item.nbytes))
    places: list[Place] = ["memory", "GPU"] if memory.gpu else ["memory"]
    for place in places:
        what = "sum" if place == "memory" else "sum on each GPU"
        table.add_row(what, place, "", f"{size(memory.taken(place))} of {size(memory.available(place))} free")
    return table

"""Nodes of a Ray cluster: one node as Ray knows it, and tasks and actors that run on it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RayNode:
    """A live node of the cluster, on which tasks and actors can be pinned: Ray's id, address and CPU cores.

    What an engine finds there is a :class:`esplug.engines.nodes.NodeReport`. :class:`esplug.planning.placement.Node` is
    only a machine's size, which need not be in a cluster.
    """

    id: str
    address: str
    cores: int


def on_node(node: str, target: Any) -> Any:
    """Make a function a task, or a class an actor, that runs on the node with this id and takes no core there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options = {} if isinstance(target, type) else {"max_retries": 0}
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, **options)(target).options(scheduling_strategy=there)

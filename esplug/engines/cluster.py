"""Connection to Ray: an existing cluster or a new local one, and its resources."""

import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esplug.config import RunConfig
from esplug.config.validation import ray_address
from esplug.errors import RunError, UserError
from esplug.planning.placement import Node, Resources
from esplug.utils.cores import usable_cores
from esplug.utils.ray_nodes import RayNode
from esplug.utils.text import one_line

_LOCAL_STARTS = 3


def cluster_address(config: RunConfig) -> str | None:
    """Return the address of the cluster to use, or ``None`` for a local one.

    It is ``--ray-address`` or, as for ``ray.init``, the variable ``RAY_ADDRESS``, which Ray sets for its jobs. The
    variable is read here and not into the settings, because a resumed run may be in another cluster.

    Raises:
        UserError: ``RAY_ADDRESS`` is no address of a cluster.
    """
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if config.ray_address or named in ("", "local"):
        return config.ray_address
    try:
        return ray_address(named)
    except ValueError as error:
        raise UserError(
            f"RAY_ADDRESS {named!r}: {error}; `ray job submit` reads the dashboard's URL from RAY_API_SERVER_ADDRESS"
        ) from error


class Cluster:
    """The connection to Ray: a cluster at ``address``, or a new local one. Uses Ray as it is if it is initialized.

    Args:
        address: of an existing cluster.
        use_gpus: for a local cluster: positions of GPUs, such as ``0,1``; ``none`` for none; ``None`` for all.

    Raises:
        UserError: no cluster answers at ``address``, or there are fewer GPUs.
        RunError: Ray does not start here.
    """

    def __init__(self, address: str | None, use_gpus: str | None) -> None:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed")  # the pool reports it
        import ray

        self._owned = not ray.is_initialized()
        if not self._owned:
            return
        self._visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        try:
            with _defer_signals():
                self._connect(address, use_gpus)
        except BaseException:
            self.close()
            raise

    def _connect(self, address: str | None, use_gpus: str | None) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        if address:
            try:
                _check_port(address)
                ray.init(address=address, **common)
            except (OSError, RuntimeError, ValueError) as error:
                source = "RAY_ADDRESS" if address == os.environ.get("RAY_ADDRESS") else "--ray-address"
                raise UserError(
                    f"{source} {address}: no Ray cluster answers there ({one_line(error)}); "
                    "where it wants a token, set RAY_AUTH_MODE=token"
                ) from error
            return
        if use_gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = "" if use_gpus == "none" else visible_devices(use_gpus, self._visible)
        if "RAY_AUTH_TOKEN_PATH" not in os.environ and not (Path.home() / ".ray" / "auth_token").exists():
            # Ray would create that file, and the first two runs on a machine would overwrite each other's.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        for attempt in range(1, _LOCAL_STARTS + 1):
            try:
                ray.init(
                    address="local",
                    num_cpus=len(usable_cores()),
                    num_gpus=local_gpus(),
                    include_dashboard=False,
                    object_store_memory=512 * 2**20,
                    **common,
                )
                return
            except (OSError, RuntimeError, ValueError) as error:  # such as a port that another run has just taken
                ray.shutdown()
                if attempt == _LOCAL_STARTS:
                    raise RunError(f"Ray does not start here: {one_line(error)}") from error

    def resources(self, needed: str | None = None) -> Resources:
        """Return the resources of the cluster's live nodes, or of those that have a ``needed`` resource of Ray.

        Raises:
            UserError: no node has it.
        """
        import ray

        every = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        found = [each for each in every if needed is None or each.get(needed, 0) > 0]
        if not found:
            has = sorted({name for each in every for name in each} - {"CPU", "GPU", "memory", "object_store_memory"})
            there = ", ".join(name for name in has if not name.startswith("node:")) or "none of their own"
            raise UserError(f"--engine-resource {needed}: no node has that; the nodes' resources are: {there}")
        nodes = (Node(*(int(node.get(name, 0)) for name in ("GPU", "CPU", "memory"))) for node in found)
        return Resources(tuple(nodes))

    def others(self) -> list[RayNode]:
        """Return the live nodes with cores, without this machine's own."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        alive = (node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
        found = (RayNode(n["NodeID"], n["NodeManagerAddress"], int(n["Resources"].get("CPU", 0))) for n in alive)
        return [node for node in found if node.cores > 0]

    def close(self) -> None:
        """Disconnect, and stop the cluster if it is local. Does nothing if Ray was initialized before."""
        import ray

        if not self._owned:
            return
        with _defer_signals():
            ray.shutdown()
        if self._visible is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._visible


@contextmanager
def _defer_signals() -> Iterator[None]:
    """Defer SIGINT and SIGTERM while Ray starts or stops, because it can crash halfway. A second one is not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    from ray._private import utils

    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[int] = []

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _: object) -> None:
        received.append(number)
        if len(received) > 1:
            restore()
            signal.raise_signal(number)

    install = getattr(utils, "set_sigterm_handler", None)
    utils.set_sigterm_handler = lambda _: None  # Ray's own handler would exit at once
    for number in handlers:
        signal.signal(number, note)
    try:
        yield
    finally:
        utils.set_sigterm_handler = install
        restore()
        if received:
            signal.raise_signal(received[0])


def _check_port(address: str) -> None:
    """Check that something listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def visible_devices(use_gpus: str, visible: str | None) -> str:
    """Choose GPUs by positions, such as ``0,1``, among the ``visible`` ones (``CUDA_VISIBLE_DEVICES``).

    Raises:
        UserError: there are fewer.
    """
    allowed = visible.split(",") if visible else [str(i) for i in range(local_gpus())]
    chosen = [int(part) for part in use_gpus.split(",")]
    if allowed and max(chosen) >= len(allowed):
        raise UserError(f"--use-gpus {use_gpus}: there are {len(allowed)} GPUs, numbered from 0")
    return ",".join(allowed[i] for i in chosen) if allowed else ""


def local_gpus() -> int:
    """Count the GPUs that this process may use and that the installed torch can drive."""
    import torch

    return torch.cuda.device_count()

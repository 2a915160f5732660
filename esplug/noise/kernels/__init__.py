"""Noise kernels: the noise of :mod:`esplug.noise.full_rank`, fused with its uses, in one module per kind of device.

Import these modules only after the engine has started: ``cpu`` needs numba, and vLLM's CPU engine crashes if numba was
imported before it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import device as Device  # noqa: N812


def kernels_for(device: "Device", *, in_host: bool = False) -> Any:
    """Return the kernels for a device: a module, or an object with the same functions.

    ``in_host`` is for weights in host memory with which a GPU computes.
    """
    if in_host:
        from esplug.noise.kernels.streamed import Streamed

        return Streamed(device)
    if device.type == "cpu":
        from esplug.noise.kernels import cpu

        return cpu
    from esplug.noise.kernels import cuda

    return cuda

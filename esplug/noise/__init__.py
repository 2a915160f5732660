"""Noise: the exact definition of ``eps(seed, tensor name, index)``, and kernels that compute it.

:mod:`.full_rank` and :mod:`.low_rank` define it in plain torch; :mod:`.kernels` computes the same bits faster on CPU
and GPU. Runs inside vLLM's workers, and wherever a seed log is replayed. Imports no other room.
"""

from esplug.noise.full_rank import MEAN, SCALE, eps, float32, integers, member_seed, philox, tensor_key, tensor_keys

__all__ = ["MEAN", "SCALE", "eps", "float32", "integers", "member_seed", "philox", "tensor_key", "tensor_keys"]

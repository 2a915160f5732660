"""Everything that runs inside vLLM: the worker extension, the ways into its model, and patches of its scheduler.

Runs in vLLM's worker processes and, for the scheduler and texts, in the engine actor that hosts them. Each private
interface of vLLM is used in one module only. May import :mod:`esplug.weights`, :mod:`esplug.planning` and below.
"""

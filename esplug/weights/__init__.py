"""The master weights: a float32 copy of the checkpoint's tensors, from which every member's weights are written.

Runs inside vLLM's workers, but knows torch only, not vLLM. May import :mod:`esplug.checkpoints` and
:mod:`esplug.noise`.
"""

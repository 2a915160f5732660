"""Master weights: a copy of the checkpoint's tensors, from which every member's weights are written.

Runs inside vLLM's workers, but knows only torch, not vLLM. May import :mod:`esplug.checkpoints` and
:mod:`esplug.noise`.
"""

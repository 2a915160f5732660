"""Master weights: a copy of the checkpoint's tensors, from which every member's weights are computed.

Runs inside vLLM's workers, but knows only torch: :mod:`esplug.vllm_worker` writes the weights into vLLM's model. May
import :mod:`esplug.checkpoints` and :mod:`esplug.noise`.
"""

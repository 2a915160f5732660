"""Models on disk: model folders and their safetensors files, the seed log, replay and export.

Runs in the driver; vLLM's workers use it to read weights and to catch up. Needs neither vLLM, Ray nor a GPU. May
import :mod:`esplug.config`, :mod:`esplug.es`, :mod:`esplug.noise` and :mod:`esplug.utils`.
"""

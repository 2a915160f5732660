"""Models on disk: model folders, seed logs, replay and export, and the safetensors files below them.

Runs in the driver and, for reading and catching up, in workers. Needs neither vLLM, Ray nor a GPU. May import
:mod:`esplug.noise`, :mod:`esplug.es`, :mod:`esplug.config` and :mod:`esplug.utils`.
"""

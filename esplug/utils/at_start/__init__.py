"""Folder that engines add to ``PYTHONPATH`` of the processes that they start (:mod:`esplug.utils.torch_builds`)."""

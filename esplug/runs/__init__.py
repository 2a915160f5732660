"""Runs: the directory, settings, prompts, metrics, records, results and resumption of one run.

The code runs in the driver. May import :mod:`esplug.evaluation`, :mod:`esplug.engines`, :mod:`esplug.rewards`,
:mod:`esplug.loggers` and the rooms below them.
"""

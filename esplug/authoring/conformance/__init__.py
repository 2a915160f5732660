"""Conformance kit: checks, without a model, that a plugin does what a run needs.

Runs in the driver and starts real grading processes and logger threads. :mod:`esplug.testing` is its public interface.
"""

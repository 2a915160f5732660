"""The conformance kit: checks that a plugin does what a run needs, without a model.

Runs in the driver and starts real graders and logger threads, as a run does. :mod:`esplug.testing` is its public front.
"""

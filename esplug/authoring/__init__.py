"""Tools for plugin authors: package templates (`esplug init`) and the conformance kit (`esplug check`).

Runs in the driver, without a model or engines. :mod:`esplug.testing` is the public front of the conformance kit. May
import every room up to :mod:`esplug.evaluation`.
"""

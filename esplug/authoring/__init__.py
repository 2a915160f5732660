"""Tools for plugin authors: package templates (``esplug init``) and the conformance kit (``esplug check``).

Runs in the driver, without a model or engines. :mod:`esplug.testing` is the public interface of the conformance kit.
May import :mod:`esplug.data`, :mod:`esplug.loggers`, :mod:`esplug.rewards` and the rooms below them.
"""

"""Built-in loggers, one module each, and the set of loggers that a run writes to.

Runs in the driver, each logger in a thread of its own. May import :mod:`esplug.plugins` and :mod:`esplug.utils`.
"""

"""Built-in loggers, one module each, and the set of loggers of a run.

Runs in the driver; every logger has its own thread, except synchronous ones. May import :mod:`esplug.plugins`,
:mod:`esplug.hookspecs`, :mod:`esplug.config` and :mod:`esplug.utils`. No logger imports its service before a run
starts it.
"""

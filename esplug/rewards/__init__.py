"""The rewards: grades answers in separate processes that can be killed, while engines generate.

:mod:`.pool` runs in the driver; :mod:`.grader` is the program of a grader process and the pool kills it when it exceeds
the time or memory limit. May import :mod:`esplug.hookspecs` and :mod:`esplug.utils`.
"""

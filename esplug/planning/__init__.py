"""Planning: how many engines fit, how much memory they use, and what a run costs. Pure arithmetic.

Runs in the driver before engines start; a worker uses it to size its own memory. May import :mod:`esplug.checkpoints`,
:mod:`esplug.weights` (for the shapes of blocks), :mod:`esplug.config`, :mod:`esplug.es` and :mod:`esplug.noise`.
"""

"""Planning: how many engines fit, what memory they take, and what a run costs. Pure arithmetic.

Runs in the driver before engines start; a worker uses it to size its own memory. May import :mod:`esplug.checkpoints`,
:mod:`esplug.weights` (for the shapes of blocks) and :mod:`esplug.config`.
"""

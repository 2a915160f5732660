"""Planning: how many engines fit, how much memory they use, and what a run costs.

Arithmetic on settings and on the shapes in a checkpoint. Runs in the driver before engines start; a worker sizes its
own memory with it. May import :mod:`esplug.checkpoints`,
:mod:`esplug.weights` (for the shapes of blocks), :mod:`esplug.config`, :mod:`esplug.es` and :mod:`esplug.noise`.
"""

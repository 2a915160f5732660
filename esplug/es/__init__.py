"""Mathematics of Evolution Strategies: members, the update's coefficients (:mod:`.update`) and schedules.

Pure functions without I/O, which run in the driver and wherever a seed log is replayed. May import :mod:`esplug.noise`
only.
"""

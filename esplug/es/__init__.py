"""The mathematics of Evolution Strategies: members, coefficients, schedules and diagnostics.

Pure functions without I/O, engines or clocks. They run in the driver and in whatever replays a seed log. May import
:mod:`esplug.noise.full_rank` only.
"""

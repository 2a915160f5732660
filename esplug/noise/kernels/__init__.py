"""The noise of :mod:`esplug.noise.full_rank`, fused with what it is for: one module per kind of device.

Nothing imports these modules before an engine has started: ``cpu`` needs numba, and numba imported before
vLLM's CPU engine starts makes that engine crash.
"""

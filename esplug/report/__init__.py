"""`esplug report`: one HTML page with the figures, samples and settings of one or several runs.

Runs in the driver and reads run directories only. May import :mod:`esplug.runs` and below, but no engines.
"""

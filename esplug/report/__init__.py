"""`esplug report`: one HTML page with the figures, samples and settings of one or several runs.

Runs in the driver and reads only run directories. May import :mod:`esplug.runs` and the rooms below it, but starts no
engines.
"""

"""`esplug train --dry-run`: shows the prompts, memory and cost of a run without making it.

Runs in the driver. Drives a real trainer for the probe, so it is above :mod:`esplug.trainer`.
"""

"""`esplug train --dry-run`: shows the prompts, memory and cost of a run without making it.

Runs in the driver. Times come from a probe, a trainer that takes short measurements, so this room may import
:mod:`esplug.trainer` and every room below it.
"""

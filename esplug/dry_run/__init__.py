"""`esplug train --dry-run`: shows the prompts, memory and cost of a run without making it.

Runs in the driver. The probe is a real trainer, so this room may import :mod:`esplug.trainer` and every room below it.
"""

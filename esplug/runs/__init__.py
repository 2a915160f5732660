"""A run on disk: its directory, settings, metrics, records, resumption and results.

Runs in the driver. May import every room below the trainer.
"""

"""Data: reads rows, collates them into batches, and encodes prompts into token ids.

Runs in the driver, before engines start and once per iteration. Knows tasks, but not engines. May import
:mod:`esplug.checkpoints` (for the model's length), :mod:`esplug.plugins` and the rooms below them.
"""

"""The data: reads rows, collates them into batches, and encodes prompts into token ids.

Runs in the driver, before engines start and once an iteration. Knows tasks, but no engines. May import
:mod:`esplug.checkpoints` (for the model's tokenizer), :mod:`esplug.plugins` and what they import.
"""

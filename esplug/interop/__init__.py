"""Tasks of esplug for other trainers. Runs in the process of that trainer; it may import any room below ``trainer``.

:mod:`.trl` gives TRL's ``GRPOTrainer`` a task's rows and rewards. esplug does not install TRL.
"""

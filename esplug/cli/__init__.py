"""Command line: one module per command, and one for options.

Runs in the driver. Arguments are parsed before heavy modules are imported. To add a flag for a setting, add a field in
:mod:`esplug.config.run_config`. May import every other room.
"""

from esplug.cli.app import main as main

"""Command line: one module per command, and one for options.

Runs in the driver. It parses before it imports: modules here import nothing heavy at module level. May import every
other room. A flag for a setting is not declared here but as a field in :mod:`esplug.config.run_config`.
"""

from esplug.cli.app import main as main

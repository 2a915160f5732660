"""The command line: one module per command, named after it, plus options, completion and console tables.

Runs in the driver. Parses before it imports: modules here import no heavy library at module level. May import every
other room.
"""

from esplug.cli.app import main as main

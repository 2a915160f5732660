"""``python -m esplug``."""

from esplug.cli.app import main

main()

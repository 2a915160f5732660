"""``python -m esplug``."""

from esplug.cli import main

main()

"""``esplug doctor``: what is installed, what the machine has, and whether a run of some settings can work on it."""

"""Templates of new plugin packages, and the code that fills them in for ``esplug init``."""

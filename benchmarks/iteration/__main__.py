"""Entry point of ``python -m benchmarks.iteration``."""

from benchmarks.iteration.run import main

main()

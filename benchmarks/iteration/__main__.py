"""Entry point of ``python -m benchmarks.iteration``."""

from benchmarks.iteration.run import main

if __name__ == "__main__":
    main()

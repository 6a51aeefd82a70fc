"""How fast it is: `python -m benchmarks`. Every figure is a ratio of candidates that took turns in one run."""

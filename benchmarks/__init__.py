"""Measure the speed: `python -m benchmarks`. Every ratio is between candidates that took turns in one run."""

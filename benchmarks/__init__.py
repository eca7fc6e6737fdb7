"""Benchmarks: the cost of recording, as ratios measured in one run. ``python -m benchmarks`` prints one table."""

"""Measurements: each file is a command that writes its result to benchmarks/results/."""

"""Measurements: the pytest-benchmark suite and the MNIST comparison."""

"""Measurements: pytest-benchmark suites, the MNIST comparison and the machine-code report."""

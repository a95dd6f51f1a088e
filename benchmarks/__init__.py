"""Measurements: the suite, MNIST, dead units, machine code, host time; and the report on them."""

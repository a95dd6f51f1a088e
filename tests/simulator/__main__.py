"""python -m tests.simulator [arguments of pytest]: tests that need a GPU, on two simulated ones."""

import os
import sys

from .libraries import environment, pytest_command, unavailable

if reason := unavailable():
    sys.exit(f"no simulated GPU: {reason}")
command = pytest_command(*sys.argv[1:])
os.execve(command[0], command, environment())

"""python -m tests.simulator [arguments of pytest]: tests that need a GPU, on two simulated ones.

python -m tests.simulator --module NAME [arguments]: a module, as by python -m, with simulated GPUs.
"""

import os
import sys

from .libraries import environment, pytest_command, unavailable

MODULE = """
import runpy, sys
from tests.simulator import bridge, gpu
if gpu.library.sim_executes():
    bridge.install()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""

if reason := unavailable():
    sys.exit(f"no simulated GPU: {reason}")
command = pytest_command(*sys.argv[1:])
if sys.argv[1:2] == ["--module"]:
    command = [sys.executable, "-c", MODULE, *sys.argv[2:]]
os.execve(command[0], command, environment())

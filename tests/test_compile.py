"""The kernels through Triton's real compiler, for a GPU that need not be there.

In a process of its own: the other tests may have chosen the interpreter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

SCRIPT = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:  # as much of a GPU as compilation asks for
    def get_current_device(self): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_stream(self, device=None): return 0
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Driver())
from fusedact import random
from fusedact.functional import ACTIVATIONS
from fusedact.kernels import launch

compiled = {}

class Compiling:
    def __init__(self, kernel): self.kernel = kernel
    def __getitem__(self, grid):
        def call(*arguments, **options):
            binary = self.kernel.warmup(*arguments, grid=grid, **options)
            compiled[binary.hash] = binary.metadata.shared
        return call

launch.forward_kernel = Compiling(launch.forward_kernel)
launch.backward_kernel = Compiling(launch.backward_kernel)
for activation in ACTIVATIONS:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        before = len(compiled)
        for n in range(8, 100_000, 1000):  # multiples of 8: one vec for each dtype
            x = torch.empty(n, dtype=dtype)
            plan = random.eager_plan(n, x.element_size(), 132, 2048)
            bits = launch.empty_bits(activation, x, plan)
            draw = random.Draw(n % 7, 4 * n, plan)
            launch.forward(activation, x, x, bits, 0.3, n / 1e6, draw)
            launch.backward(activation, x, x, bits, x, 0.3, n / 1e6, plan)
        print(activation.name, dtype, len(compiled) - before)
"""


def test_compiles_once_for_all_sizes_seeds_and_probabilities():
    pytest.importorskip("triton", reason="needs Triton's compiler")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(SRC)
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.split("\n")[:-1]
    assert len(lines) == 9
    # forward and backward
    assert all(line.endswith(" 2") for line in lines), result.stdout

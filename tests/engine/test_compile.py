"""The kernels through Triton's real compiler and launch path, for a GPU that need not be there.

In a process of its own: the other tests may have chosen the interpreter.
"""

from cases import compiling

CALLS = """
import functools
import torch
from fusedact import rows
from fusedact.activations import Saves
import triton
from fusedact.kernels import configuration, launch
from fusedact.masks.generator import PhiloxState
from fusedact.masks.plan import RNGS, eager_plan, fast_plan

empty = functools.cache(torch.empty)  # the same memory at every call
ENGINE = rows.LEAKY_RELU, rows.ELU

def calls(activation, dtype, n, rng):
    x = empty(n, dtype=dtype)
    size = n, dtype.itemsize
    plan = fast_plan(*size) if rng == "fast" else eager_plan(*size, 132, 2048)
    values = (0.3,) if activation.parameters else ()
    made = configuration.configure(activation, dtype, n, values, 1 / (2 + n % 2), plan)
    number, bits = empty(1, dtype=torch.int64), empty(made.bits_shape, dtype=torch.int32)
    for state in (PhiloxState(n % 7, 4 * n), PhiloxState(0, 8, (number, number))):
        launch.forward(made, x, x, state, bits)
    launch.backward(made, x, x, bits, x if activation.saves is Saves.INPUT else None)
    return made
"""

COUNT = """
compiled = set()

class Compiling:
    def __init__(self, kernel): self.kernel, self.arg_names = kernel, kernel.arg_names
    def __getitem__(self, grid):
        return lambda *a, **o: compiled.add(self.kernel.warmup(*a, grid=grid, **o).hash)

configuration.forward_kernel = Compiling(configuration.forward_kernel)
configuration.backward_kernel = Compiling(configuration.backward_kernel)
for activation in (rows.LEAKY_RELU, rows.ELU):
    for rng in RNGS:
        for dtype in (torch.bfloat16,):
            before = len(compiled)
            for n in range(5000, 105_000, 1001):  # multiples of 1, 2, 4 and 8
                calls(activation, dtype, n, rng)
            print(activation.name, rng, dtype, len(compiled) - before)
"""

LAUNCH = """
from triton.compiler import CompiledKernel
from fusedact import _torch

launches = []
hook = launches.copy  # which does nothing here
CompiledKernel._init_handles = lambda self: None
CompiledKernel.run = lambda self, *a: launches.append((self.hash, a))
_torch.current_device = lambda: -1  # a CPU tensor's
_torch.current_stream = lambda device: 7
for activation in ENGINE:
    for dtype in (torch.bfloat16, torch.float64):
        for n in (4096, 1001):
            triton.knobs.runtime.launch_enter_hook.add(hook)  # Triton launches
            made = calls(activation, dtype, n, "eager")
            assert not launch.ready_to_capture(made, -1, True)
            triton.knobs.runtime.launch_enter_hook.remove(hook)
            assert launch.ready_to_capture(made, -1, True)
            calls(activation, dtype, n, "eager")  # we do
            tritons, ours = launches[:3], launches[3:]
            assert len(tritons) == len(ours) == 3
            for (kernel, theirs), (own_kernel, own) in zip(tritons, ours):
                assert kernel == own_kernel
                assert theirs[:5] == own[:5]  # grid, stream, function
                assert own[3] == 7
                assert theirs[5] is own[5]  # the packed metadata
                assert own[6:9] == (None, None, None)
                assert len(theirs) == len(own)
                for a, b in zip(theirs[9:], own[9:]):
                    address = a.data_ptr() if isinstance(a, torch.Tensor) else None
                    assert a is b or b == (a if address is None else address), (a, b)
            launches.clear()
            print(activation.name, dtype, n)

# What a graph launches is there after the first call that it doesn't need.
configuration._forward_kernel.cache_clear()
configuration._backward_kernel.cache_clear()
x = torch.empty(4096)
made = configuration.configure(rows.RELU, x.dtype, 4096, (), 0.5, eager_plan(4096, 4, 132, 2048))
bits = torch.empty(made.bits_shape, dtype=torch.int32)
launch.forward(made, x, x, PhiloxState(1, 0), bits)
assert launch.ready_to_capture(made, -1, False)
assert not launch.ready_to_capture(made, -1, True)
launch.backward(made, x, x, bits)
assert launch.ready_to_capture(made, -1, True)
loads = launches.copy()
launch.forward(made, x, x, PhiloxState(0, 0, (bits, bits)), bits)
assert launches[len(loads)][1][5] is made.in_graphs._loaded[-1].kernel.packed_metadata

# Other code than usual isn't kept.
configuration._backward_kernel.cache_clear()
made = configuration.configure(rows.RELU, x.dtype, 4096, (), 0.5, eager_plan(4096, 4, 132, 2048))
triton.knobs.runtime.debug = True
launch.backward(made, x, x, bits)
triton.knobs.runtime.debug = False
assert not launch.ready_to_capture(made, -1, True)
"""


def test_a_hundred_sizes_need_at_most_four_compilations_of_each_kernel():
    """One per vec of eager's plan, of which a dtype has up to four; seeds, offsets, p and slope need none.

    Forward has two kernels: numbers from the host, and from the device.
    """
    lines = compiling(CALLS + COUNT)
    assert len(lines) == 4  # two activations, two mappings
    for line in lines:
        most = 3 * (4 if "eager" in line else 2)  # two forward and one backward
        assert 3 <= int(line.split()[-1]) <= most, lines


def test_our_launch_hands_the_compiled_kernel_what_tritons_does():
    assert len(compiling(CALLS + LAUNCH)) == 8  # two activations, two dtypes, two sizes

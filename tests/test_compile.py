"""The kernels through Triton's real compiler and launch path, for a GPU that need not be there.

In a process of its own: the other tests may have chosen the interpreter.
"""

from cases import ACTIVATIONS, compiling

CALLS = """
import torch
from fusedact import random
from fusedact.functional import ACTIVATIONS
from fusedact.kernels import launch

def calls(activation, dtype, n, rng):
    x = torch.empty(n, dtype=dtype)
    prepared = launch.prepare(
        activation, dtype, n, 0.3, 1 / (2 + n % 2), random.plan(rng, n, dtype.itemsize, 132, 2048)
    )
    number = torch.zeros(1, dtype=torch.int64)
    for draw in (random.Draw(n % 7, 4 * n), random.Draw(0, 8, (number, number))):
        bits = launch.forward(prepared, x, x, draw)
    launch.backward(prepared, x, x if activation.saved.name == "INPUT" else None, bits, x)
    return prepared
"""

COUNT = """
compiled = set()

class Compiling:
    def __init__(self, kernel): self.kernel, self.arg_names = kernel, kernel.arg_names
    def __getitem__(self, grid):
        return lambda *a, **o: compiled.add(self.kernel.warmup(*a, grid=grid, **o).hash)

launch.forward_kernel = Compiling(launch.forward_kernel)
launch.backward_kernel = Compiling(launch.backward_kernel)
for activation in ACTIVATIONS:
    for rng in random.RNGS:
        for dtype in (torch.bfloat16, torch.float32):
            before = len(compiled)
            for n in range(5000, 105_000, 1001):  # multiples of 1, 2, 4 and 8
                calls(activation, dtype, n, rng)
            print(activation.name, rng, dtype, len(compiled) - before)
"""

LAUNCH = """
from triton.compiler import CompiledKernel

launches = []
CompiledKernel._init_handles = lambda self: None
CompiledKernel.run = lambda self, *a: launches.append((self.hash, a))
random.current_device = lambda: -1  # a CPU tensor's
launch._current_stream = lambda device: 7
watched = launch._watched
for activation in ACTIVATIONS:
    for dtype in (torch.bfloat16, torch.float64):
        for n in (4096, 1001):
            launch._watched = lambda: True  # Triton launches
            assert not launch.loaded(calls(activation, dtype, n, "eager"), -1, True)
            launch._watched = watched  # we do
            assert launch.loaded(calls(activation, dtype, n, "eager"), -1, True)
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
                    same = a.shape == b.shape if isinstance(a, torch.Tensor) else a is b or a == b
                    assert same, (a, b)
            launches.clear()
            print(activation.name, dtype, n)

# What a graph launches is there after the first call that it doesn't need.
launch._kernel.cache_clear()
x = torch.empty(4096)
plan = random.plan("eager", 4096, 4, 132, 2048)
prepared = launch.prepare(ACTIVATIONS[0], x.dtype, 4096, 0.0, 0.5, plan)
bits = launch.forward(prepared, x, x, random.Draw(1, 0))
assert launch.loaded(prepared, -1, False) and not launch.loaded(prepared, -1, True)
launch.backward(prepared, x, None, bits, x)
assert launch.loaded(prepared, -1, True)
loads = launches.copy()
launch.forward(prepared, x, x, random.Draw(0, 0, (bits, bits)))
assert launches[len(loads)][1][5] is prepared.captured._compiled[-1].metadata
"""


def test_a_hundred_sizes_need_at_most_four_compilations_of_each_kernel():
    """One per vec of eager's plan, of which a dtype has up to four; seeds, offsets, p and slope need none.

    Forward has two kernels: numbers from the host, and from the device.
    """
    lines = compiling(CALLS + COUNT)
    assert len(lines) == 4 * len(ACTIVATIONS)  # two mappings, two dtypes
    for line in lines:
        most = 3 * (4 if "eager" in line else 2)  # two forward and one backward
        assert 3 <= int(line.split()[-1]) <= most, lines


VALUES = """
from fusedact.kernels import counting

compiled = {}  # per kernel and compile-time arguments: what Triton made

class Compiling:
    def __init__(self, kernel): self.kernel, self.arg_names = kernel, kernel.arg_names
    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            made = self.kernel.warmup(*arguments, grid=grid, **constants)
            compiled.setdefault((made.metadata.name, str(constants)), set()).add(made.hash)
        return launch

for module, name in ((launch, "forward"), (launch, "backward"), (counting, "fired"), (counting, "input")):
    setattr(module, name + "_kernel", Compiling(getattr(module, name + "_kernel")))
counting._free = lambda kernel, tensor: True
leaky = next(row for row in ACTIVATIONS if row.name == "leaky_relu")
number = torch.zeros(1, dtype=torch.int64)
for dtype in (torch.float32, torch.float64):
    # Zero, one, a multiple of 16, above 32 bits, the highest bit, as a number and as the bits of one.
    for n, seed, offset, slope, p in (
        (2**20, 0, 0, 0.0, 0.5),
        (2**21, 1, 4, 1.0, 0.3),
        (3 * 2**20, 2**64 - 1, 2**36, -0.0, 2**-32),
        (2**33, 16, 64, 5e-324, 1 - 2**-16),
        (2**31, 2**63, 2**34, -0.3, 1e-12),
    ):
        # As large as n says, which nobody allocates.
        x = torch.empty(1, dtype=dtype).expand(n)
        for rng in random.RNGS:
            plan = random.plan(rng, n, dtype.itemsize, 132, 2048)
            prepared = launch.prepare(leaky, dtype, n, slope, p, plan)
            bits = torch.empty(1, dtype=torch.int32)
            for draw in (random.Draw(seed, offset), random.Draw(0, offset, (number, number))):
                launch.forward(prepared, x, x, draw, bits)
            launch.backward(prepared, x, None, bits, x)
        counts, activity = torch.zeros(2, 129, dtype=torch.int64), torch.zeros(128, dtype=torch.float64)
        shape = n // 128, 128, 1
        counting.fired_counter(leaky, n, plan, shape, counts)(bits.expand(1, 2, 128))
        for stride in (1, 16, 31, 2**32):
            counting.count_input(leaky, 0.3, x, shape, 1, stride, n, (True, True), counts, activity)
for (kernel, constants), hashes in compiled.items():
    print(kernel, len(hashes))
"""


def test_no_scalars_value_decides_what_is_compiled():
    """Triton gives an integer the type, and the specialisation, of its value: our launcher asks it once."""
    lines = compiling(CALLS + VALUES)
    assert sorted({line.split()[0] for line in lines}) == [
        "backward_kernel",
        "fired_kernel",
        "forward_kernel",
        "input_kernel",
    ]
    assert [line for line in lines if line.split()[1] != "1"] == []


def test_our_launch_hands_the_compiled_kernel_what_tritons_does():
    assert len(compiling(CALLS + LAUNCH)) == 4 * len(ACTIVATIONS)  # two dtypes, two sizes

"""The counting kernels against PyTorch, and what they compile to."""

import re

import pytest
import torch
from cases import DTYPES, WATCHED, compiling, values, watched

from fusedact import rows
from fusedact.activations import Bound
from fusedact.kernels.counted import Figures, Row, Shape
from fusedact.monitor import counting, facts
from fusedact.monitor.tally import Tally

# Units, positions, samples.
COUNTED = [
    (128, 1, 200),  # alike in all groups
    (8, 1, 5000),
    (1, 1, 30_000),
    (3, 1, 20_000),
    (96, 1, 700),  # across tiles
    (4096, 1, 40),
    (12_288, 1, 20),
    (8, 64, 60),
    (5, 48, 1100),
    (1, 320, 700),
    (64, 1, 64 * 600),  # more tiles than a sum of 8 bits can have, with the programs that are below
]


@pytest.mark.parametrize("lanes", [8, 4, 2])
@pytest.mark.parametrize("case", COUNTED, ids=str)
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_bits_are_counted(lanes, case, density, device, monkeypatch):
    from fusedact.kernels import monitor
    from fusedact.kernels.tiles import COLUMNS, TILE

    units, inner, outer = case
    if lanes < 8 and outer * units * inner > 500_000:
        pytest.skip("long, and the same additions")
    bits = torch.rand(outer, units, inner, device=device) < density
    n = bits.numel()
    tiles = -(-n // TILE)
    # What lies beyond the end is set, as it may be.
    flat = torch.cat([bits.flatten(), bits.new_ones(tiles * TILE - n)])
    flat = flat.view(tiles, 32 // lanes, COLUMNS, lanes).transpose(1, 2).reshape(tiles, COLUMNS, 32).int()
    places = torch.arange(31, -1, -1, dtype=torch.int32, device=device)
    words = (flat << places).sum(2, dtype=torch.int32)
    planes = torch.stack([torch.full_like(words, -1), words], 1)  # of which one is counted
    counts = torch.full((1 + units,), 2**40, device=device)
    monkeypatch.setattr(monitor, "_PROGRAMS", 1)  # as few as there may be, so that each has many tiles
    kernel, grid, scalars = monitor._fired.__wrapped__(n, units, inner, 2, lanes)
    kernel(grid, (planes[:, 1], counts), scalars)
    expected = torch.cat([counts.new_tensor([outer * inner]), bits.sum((0, 2))])
    assert torch.equal(counts - 2**40, expected)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "negated": lambda x: torch._neg_view(-x),
}


# Less and more than a tile of units, of samples and of outer samples.
SHAPES = [(3, 6, 5, 4), (40, 2, 3, 40), (2, 1, 3, 600), (1, 300, 1, 1)]


@watched
@pytest.mark.parametrize(
    ("layout", "shape"),
    [*((layout, SHAPES[0]) for layout in LAYOUTS), *(("contiguous", shape) for shape in SHAPES[1:])],
    ids=str,
)
@pytest.mark.parametrize("dim", [-1, 1])
def test_the_kernel_counts_what_plain_pytorch_counts(activation, layout, shape, dim, device):
    x = LAYOUTS[layout](torch.randn(shape, device=device) * 4)
    check_kernel(activation, x, dim)


@watched
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_and_special_values(activation, dtype, device):
    special = torch.tensor([0.0, -0.0, -3.0, torch.inf, -torch.inf, torch.nan, 1e-4, -1e-4], dtype=dtype)
    check_kernel(activation, special.to(device).repeat(50, 1), -1)
    check_kernel(activation, (torch.randn(500, 33, device=device) * 4).to(dtype), -1)


def test_the_kernel_and_a_single_units_stride(device):
    """It may be anything."""
    check_kernel(rows.RELU, torch.randn(40, device=device).as_strided((40, 1), (1, 7)), -1)


def test_the_kernel_in_several_programs(device):
    """Along the samples, of units that stand last."""
    check_kernel(rows.RELU, torch.randn(9000, 3, device=device), -1)


def test_what_no_launch_can_hold(device):
    """Then PyTorch counts. Only the numbers are looked at: nothing is launched."""
    from fusedact.kernels import monitor

    assert monitor._fired(2**33, 2**30, 1, 1, 8) is not None
    assert monitor._fired(2**34, 2**31, 1, 1, 8) is None  # positions in a period
    assert monitor._fired(2**35, 1, 1, 1, 8) is not None
    assert monitor._fired(2**37, 1, 1, 1, 8) is None  # programs
    dtype, everything = torch.float32, FIGURES[0]
    for bound, units, fits in [
        (Bound(rows.LEAKY_RELU, (0.1,)), 2**20, True),
        (Bound(rows.LEAKY_RELU, (0.1,)), 2**22, False),  # programs
        (Bound(rows.LEAKY_RELU, (1e39,)), 2**20, False),  # beyond float32
    ]:
        launch = monitor._input(bound, dtype, Shape(1, units, 64), 64, 1, everything)
        assert (launch is not None) == fits


FIGURES = [
    Figures(True, True, True),
    Figures(True, True, False),
    Figures(False, True, True),
    Figures(False, False, True),
]


def check_kernel(activation, x, dim):
    """All figures together, and those that are asked for of large inputs, against PyTorch's on a copy."""
    from fusedact.kernels import monitor

    numbers, units = values(activation), x.shape[dim]
    dense = x.clone() if x.is_neg() or not torch.ops.aten.is_non_overlapping_and_dense(x) else x
    inner = dense.stride(dim) if units > 1 else 1
    sampling = counting.sampling(Shape(x.numel() // (units * inner), units, inner), 1)
    wide = x.detach().cpu().double().movedim(dim, -1).reshape(-1, units)
    h = activation.function(wide if x.dtype is torch.float64 else wide.float(), *numbers).double().abs()
    finite = wide.isfinite() & h.isfinite()
    expected = torch.zeros(len(Row), 1 + units, dtype=torch.int64)
    low = facts.within(wide, Bound(activation, numbers).saturated)
    for row, found in [
        *((Row.FIRED, wide > 0), (Row.NAN, wide.isnan()), (Row.INFINITE, wide.isinf())),
        *((Row.SATURATED, low), (Row.LEFT_OUT, ~finite)),
    ]:
        expected[row, 1:] = found.sum(0)
    expected[[Row.FIRED, Row.NAN, Row.SATURATED], 0] = len(wide)
    expected[Row.ALIVE, 0] = 1
    total = torch.where(finite, h, 0.0).sum(0)
    for figures in FIGURES:
        asked = torch.tensor(
            [figures.fired, figures.activity, figures.finite, figures.finite, *[figures.activity] * 2]
        )
        tally = Tally.zeros(units, x.device)
        tally.counts.add_(2**40)
        for _ in range(2):
            assert monitor.count_input(Bound(activation, numbers), dense, sampling, figures, *tally)
        assert torch.equal(tally.counts.cpu() - 2**40, 2 * expected * asked.unsqueeze(1))
        # Of a bfloat16 near 0, ELU is the number itself.
        tolerance = {torch.float64: 1e-12, torch.bfloat16: 2.0**-10}.get(x.dtype, 1e-5)
        torch.testing.assert_close(tally.activity.cpu(), 2 * total * figures.activity, rtol=tolerance, atol=0)


RANGES = [
    *(((-torch.inf, -1.0), (2.0, torch.inf)), ((-0.5, 0.5),), ((2.5, torch.inf),)),
    ((-1.0, -0.5), (2.0, 2.0)),
]


@pytest.mark.parametrize("ranges", RANGES, ids=str)
@pytest.mark.parametrize("shape", [(500, 33), (7, 6, 40)])
def test_ranges_on_both_sides(ranges, shape, device, monkeypatch):
    """A row may name any two ranges of inputs, in which units are dead or saturated."""
    from fusedact.kernels import monitor

    for fact in ("dead", "saturated"):
        monkeypatch.setattr(Bound, fact, ranges)
    monkeypatch.setattr(Bound, "dies_where_negative", False)
    monitor._input.cache_clear()
    monitor._input_kernel.cache_clear()
    x = torch.randn(shape, device=device) * 2
    x.flatten()[:4] = torch.tensor([torch.nan, ranges[0][1], torch.inf, ranges[-1][0]])
    inside = torch.zeros_like(x, dtype=torch.bool)
    for low, high in ranges:
        inside |= (x >= low) & (x <= high)
    inner = x.stride(1)
    sampling = counting.sampling(Shape(shape[0], shape[1], inner), 1)
    by_kernel, by_torch = Tally.zeros(shape[1], device), Tally.zeros(shape[1], device)
    assert monitor.count_input(Bound(rows.RELU, ()), x, sampling, FIGURES[0], *by_kernel)
    with monkeypatch.context() as patch:
        patch.setattr(counting, "_kernels", lambda: None)
        counting._read(x, sampling, FIGURES[0], Bound(rows.RELU, ()), by_torch)
    monitor._input.cache_clear()
    monitor._input_kernel.cache_clear()
    assert torch.equal(by_kernel.counts, by_torch.counts)
    for row, found in ((Row.ALIVE, ~inside), (Row.SATURATED, inside)):
        counts = found.movedim(1, -1).reshape(-1, shape[1]).sum(0)
        assert torch.equal(by_kernel.units(row).cpu(), counts.cpu())


COMPILE = r"""
import re, torch
from benchmarks.machine_code import sass
from fusedact import rows
from fusedact.activations import Bound
from fusedact.masks.plan import RNGS, eager_plan, fast_plan
from fusedact.monitor import counting
from fusedact.monitor.tally import Tally
from fusedact.kernels import monitor
from fusedact.kernels.counted import Figures, Shape
from fusedact.kernels.configuration import configure

x = torch.empty(2**20, dtype=torch.bfloat16)
bits, tally = torch.empty(2**16, dtype=torch.int32), Tally.zeros(16, "cpu")

def show(kernel, grid, *arguments):
    compiled = kernel._function.warmup(*kernel._with_constants(arguments), grid=grid, **kernel._options)
    loads = set(re.findall(r"ld[.]global[.](\S*)", compiled.asm["ptx"]))
    spills = sass.binary(compiled).spill_bytes
    print(kernel._function.__name__, f"{spills} spilled", *loads, f"shared {compiled.metadata.shared}")

for row in (rows.RELU, rows.LEAKY_RELU, rows.ELU):
    values = (0.3,) if row.parameters else ()
    for shape in ((4096, 1024, 1), (64, 64, 3136)):
        for figures in ((True, True, False), (False, True, True), (True, True, True)):
            run = counting.sampling(Shape(*shape), 31).run
            found = monitor._input(Bound(row, values), x.dtype, Shape(*shape), run, 31, Figures(*figures))
            show(found.kernel, found.grid, x, *tally, *found.before, 1, *found.after)
    for plan in (eager_plan(2**20, 2, 132, 2048), fast_plan(2**20, 2)):
        c = configure(row, x.dtype, 2**20, values, 0.5, plan, watched=True)
        signs = (bits,) if c.stores_signs else ()
        show(c.forward, c.grid, x, x, bits, *signs, *c.walk, *(1,) * 4, *c.forward_scalars)
for units, inner in ((128, 1), (4096, 1), (64, 3136)):
    kernel, grid, scalars = monitor._fired(2**30, units, inner, 2, 8)
    show(kernel, grid, bits, tally[0], *scalars)
"""


def test_the_kernels_compile_to_wide_loads_without_spills():
    lines = compiling(COMPILE)
    assert len(lines) == 8 * len(WATCHED) + 3
    for line in lines:
        kernel, expected = line.split()[0], r"0 spilled v4\.b32 shared 0"
        if kernel == "input_kernel":  # a sum over threads goes through shared memory, once in a program
            expected = r"0 spilled v4\.b32 shared \d+"
        elif kernel == "fired_kernel":
            expected = r"0 spilled b32 shared 0"
        assert re.fullmatch(f"{kernel} {expected}", line)

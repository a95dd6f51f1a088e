"""What only a GPU can show: that masks and values are `torch.nn.Dropout`'s own, bit for bit.

The kernel tests run on a GPU too, where there is one; these skip without.
"""

import functools

import pytest
import torch
from cases import (
    DTYPES,
    apply,
    assert_same,
    both,
    eager_modules,
    edges,
    in_turn,
    of_roundings,
    representatives,
)
from torch import nn

from fusedact import functional, masks, rows
from fusedact.masks import plan as plans

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def sizes(activation, pytestconfig):
    """Around those where eager's plan changes.

    On a simulated GPU one activation takes all of them. The others walk in the same way, and to compile their
    kernels for each vec takes long.
    """
    simulated = pytestconfig.pluginmanager.hasplugin("tests.simulator.plugin")
    return [n for n in edges() if activation is rows.RELU or not simulated or n % 8 == 0]


@pytest.mark.usefixtures("no_graphs")
@representatives
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_eager_bit_for_bit(activation, dtype, sizes):
    for n in sizes:
        assert_same(activation, torch.randn(n, device="cuda", dtype=dtype), 0.3)
    for p in (0.001, 0.1, 0.5, 0.9, 0.99, 1e-10):
        assert_same(activation, torch.randn(100_000, device="cuda", dtype=dtype), p)


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize(
    "activation", [rows.RELU, rows.LEAKY_RELU, rows.HARDSIGMOID, rows.IDENTITY], ids=lambda row: row.name
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_value_has_eagers_bits(activation, dtype):
    """Pairs of them are widened and rounded by inline PTX; NaN, infinities and subnormals are among them."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16, device="cuda").view(dtype)
    dy = torch.ones_like(x)
    eager = eager_modules(activation, 0.3)
    expected, result = (both(call, x, dy) for call in (eager, lambda x: apply(activation, x, 0.3)))
    torch.testing.assert_close(result[:2], expected[:2], rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("no_graphs")
@representatives
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_equals_the_activation_in_place(activation, dtype):
    x, dy = torch.randn(2, 100_000, device="cuda", dtype=dtype)
    eager = eager_modules(activation, 0.3)
    if activation.inplace:
        eager[0].inplace = True
    expected = both(lambda x: eager(x * 1.0), x, dy)

    def call(x):
        x = x * 1.0
        y = apply(activation, x, 0.3, inplace=True)
        assert y.data_ptr() == x.data_ptr()
        return y

    result = both(call, x, dy)
    assert result[2] == expected[2]
    if activation.from_output is None:
        torch.testing.assert_close(result[:2], expected[:2], rtol=0, atol=0)
        return
    close = of_roundings(dtype)
    torch.testing.assert_close(result[0], expected[0], **close)
    # Of a derivative that is the output plus alpha both have the absolute accuracy of a rounded output.
    wide = close.get("rtol", 1.3e-6) * (result[1].double().abs() + dy.double().abs() / 0.7)
    assert ((result[1].double() - expected[1].double()).abs() <= wide).all()


@pytest.mark.usefixtures("no_graphs")
@representatives
def test_launches_see_the_current_stream_device_and_alignment(activation):
    """The second launch goes through the launcher's own path, whatever the first one's pointers were."""
    base = torch.randn(4100, device="cuda")
    for start in (0, 1, 2, 4, 0, 1):
        assert_same(activation, base[start : start + 4096], 0.3)
    for _ in range(2):
        for start, of_gradient in ((0, 0), (1, 0), (0, 1), (1, 1)):
            dy = base[of_gradient : of_gradient + 4096]
            assert_same(activation, base[start : start + 4096], 0.3, dy=dy)


@pytest.mark.usefixtures("no_graphs")
@in_turn
def test_equals_eager_on_other_layouts(activation, dtype):
    x = torch.randn(8, 16, 20, 24, device="cuda", dtype=dtype)
    for view in (
        x.to(memory_format=torch.channels_last),
        x.transpose(1, 3),
        x[..., ::2],
        x[:, :1].expand(x.shape),
        x.flatten()[1:],
        x.flatten()[2:-6],
        x[:5, :3, :7, :9].to(memory_format=torch.channels_last),
        x[:5, :3, :7, :9].transpose(1, 3),
        torch._neg_view(x[..., ::2]),
        torch._neg_view(x.flatten()[2:]),
    ):
        assert_same(activation, view, 0.3)
    assert_same(activation, x, 0.3, dy=x.new_ones(()).expand(x.shape))
    assert_same(activation, x, 0.3, dy=x.transpose(2, 3).reshape(8, 16, 24, 20).transpose(2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_oracle_is_nn_dropouts_mask(dtype):
    """The same without any kernel of ours, misaligned pointers included."""
    properties = torch.cuda.get_device_properties(0)
    processors = properties.multi_processor_count, properties.max_threads_per_multi_processor
    generator = torch.cuda.default_generators[0]
    for n in edges():
        for start in (0, 1, 2, 4, 8):
            x = torch.ones(n + start, device="cuda", dtype=dtype)[start:]
            alignment = start * dtype.itemsize % 16 or 16
            torch.manual_seed(2**40 + n)
            torch.rand(5, device="cuda")
            offset = generator.get_offset()
            y = nn.functional.dropout(x, 0.3)
            mask = masks.eager_mask(
                n, 0.3, dtype, generator.initial_seed(), offset, *processors, alignment & -alignment
            )
            assert torch.equal(y.cpu() != 0, mask), (n, start)
            increment = plans.eager_plan(n, dtype.itemsize, *processors).increment
            assert generator.get_offset() == offset + increment


@pytest.mark.usefixtures("no_graphs")
@in_turn
def test_fast_draws_the_oracles_mask_from_the_devices_generator(activation, dtype):
    generator = torch.cuda.default_generators[0]
    for n in (1, 1000, 4096, 2**18, 2**18 + 3):
        x = torch.randn(n, device="cuda", dtype=dtype).abs_() + 1  # no activation makes a kept one 0
        torch.manual_seed(n)
        for _ in range(2):
            offset = generator.get_offset()
            y = apply(activation, x, 0.3, rng="fast")
            mask = masks.fast_mask(n, 0.3, generator.initial_seed(), offset)
            assert torch.equal((y != 0).cpu(), mask)
            assert generator.get_offset() == offset + 4


@pytest.mark.usefixtures("cold", "no_graphs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_does_not_decide_how_the_next_one_travels(dtype):
    """All bits of 0.0 are 0: an integer of another type than those of 0.3."""
    x = torch.randn(1000, device="cuda", dtype=dtype)
    for slope in (0.0, 0.3, -0.7, 1.0):
        fused, eager = (
            both(call, x, torch.ones_like(x))
            for call in (
                lambda x, slope=slope: functional.leaky_relu_dropout(x, negative_slope=slope),
                nn.Sequential(nn.LeakyReLU(slope), nn.Dropout(0.5)),
            )
        )
        assert torch.equal(fused[0], eager[0]), slope
        assert torch.equal(fused[1], eager[1]), slope


@representatives
def test_one_kernel_each_way_and_no_synchronisation(activation, kernels_of):
    x = torch.randn(2**16, device="cuda", requires_grad=True)
    call = functools.partial(apply, activation)
    call(x).sum().backward()
    torch.cuda.synchronize()
    dy = torch.randn_like(x)

    def step():
        torch.cuda.set_sync_debug_mode("error")
        torch.autograd.grad(call(x), x, dy)
        torch.cuda.set_sync_debug_mode("default")

    kernels = kernels_of(step)
    assert len(kernels) == 2, kernels


@representatives
def test_more_than_2_to_the_31_elements(activation):
    n = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 8 * n * 2:
        pytest.skip("needs 34 GB of GPU memory")
    x = torch.empty(n, device="cuda", dtype=torch.bfloat16).normal_()
    torch.manual_seed(1)
    expected = eager_modules(activation, 0.3)(x)
    torch.manual_seed(1)
    y = apply(activation, x, 0.3)
    tail = slice(2**31 - 4096, None)
    torch.testing.assert_close(y[tail], expected[tail])
    assert bool((y[: 2**30] == 0).eq(expected[: 2**30] == 0).all())


@representatives
@pytest.mark.usefixtures("two")
def test_runs_on_the_tensors_own_device(activation):
    x = torch.randn(10_000, device="cuda:1")
    assert_same(activation, x, 0.3)
    assert torch.cuda.current_device() == 0


@representatives
def test_side_stream_and_capture(activation):
    """What a graph captured draws other numbers at each replay, by the kernels or the composition."""
    x = torch.randn(10_000, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert_same(activation, x, 0.3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = apply(activation, x, 0.5)
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(y.clone())
    assert not torch.equal(replays[0], replays[1])
    assert not torch.equal(replays[1], replays[2])

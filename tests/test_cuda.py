"""What only a GPU can show: that masks and values are `torch.nn.Dropout`'s own, bit for bit.

The kernel tests run on a GPU too, where there is one; these skip without.
"""

import pytest
import torch
from cases import DTYPES, activations, function, parameters
from torch import nn

from fusedact import random, reference
from fusedact.activations import Saved

pytestmark = pytest.mark.usefixtures("cuda")


def pair(activation, p):
    return nn.Sequential(activation.module(*parameters(activation)), nn.Dropout(p))


def both(call, x, dy, seed=7):
    """Result, gradient, and where the generator is afterwards."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = call(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx, torch.cuda.default_generators[x.device.index].get_offset()


def assert_same(activation, x, p, dy=None):
    dy = torch.randn_like(x) if dy is None else dy
    expected = both(pair(activation, p), x, dy)
    result = both(lambda x: function(activation)(x, p, *parameters(activation)), x, dy)
    assert result[2] == expected[2]
    assert result[0].stride() == expected[0].stride()
    if activation.saved is Saved.INPUT:
        assert torch.equal(result[0] == 0, expected[0] == 0)
        torch.testing.assert_close(result[:2], expected[:2])
    else:
        assert torch.equal(result[0], expected[0])
        assert torch.equal(result[1], expected[1])


def edges():
    """Sizes around those where eager's plan changes, for this GPU."""
    properties = torch.cuda.get_device_properties(0)
    grid = properties.multi_processor_count * (properties.max_threads_per_multi_processor // 256) * 256
    near = [1, 255, 256, 257, 8192, 4 * 1021, 8 * 1021, 2 * 1021]
    for multiple in (1, 2, 4, 8, 16):
        near += [multiple * grid + d for d in (-8, -1, 0, 1, 2, 4)]
    # Simulated GPUs take a second for a million elements: large ones go round the loop once.
    return [n for n in near if n < 1_200_000]


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_eager_bit_for_bit(activation, dtype):
    for n in edges():
        assert_same(activation, torch.randn(n, device="cuda", dtype=dtype), 0.3)
    for p in (0.001, 0.1, 0.5, 0.9, 0.99, 1e-10):
        assert_same(activation, torch.randn(100_000, device="cuda", dtype=dtype), p)


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_equals_the_activation_in_place(activation, dtype):
    x, dy = torch.randn(2, 100_000, device="cuda", dtype=dtype)
    eager = nn.Sequential(activation.module(*parameters(activation), inplace=True), nn.Dropout(0.3))
    expected = both(lambda x: eager(x * 1.0), x, dy)

    def call(x):
        x = x * 1.0
        y = function(activation)(x, 0.3, *parameters(activation), inplace=True)
        assert y.data_ptr() == x.data_ptr()
        return y

    result = both(call, x, dy)
    assert result[2] == expected[2]
    exact = {"rtol": 0, "atol": 0} if activation.from_output is None else {}
    torch.testing.assert_close(result[:2], expected[:2], **exact)


@activations
def test_launches_see_the_current_stream_device_and_alignment(activation):
    """The second launch goes through the launcher's own path, whatever the first one's pointers were."""
    base = torch.randn(4100, device="cuda")
    for start in (0, 1, 2, 4, 0, 1):
        assert_same(activation, base[start : start + 4096], 0.3)


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
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
            mask = reference.eager_mask(
                n, 0.3, dtype, generator.initial_seed(), offset, *processors, alignment & -alignment
            )
            assert torch.equal(y.cpu() != 0, mask), (n, start)
            increment = random.eager_plan(n, dtype.itemsize, *processors).increment
            assert generator.get_offset() == offset + increment


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fast_draws_the_oracles_mask_from_the_devices_generator(activation, dtype):
    generator = torch.cuda.default_generators[0]
    for n in (1, 1000, 4096, 2**20, 2**20 + 3):
        x = torch.randn(n, device="cuda", dtype=dtype).abs_() + 1  # no activation makes a kept one 0
        torch.manual_seed(n)
        for _ in range(2):
            offset = generator.get_offset()
            y = function(activation)(x, 0.3, *parameters(activation), rng="fast")
            mask = reference.fast_mask(n, 0.3, generator.initial_seed(), offset)
            assert torch.equal((y != 0).cpu(), mask)
            assert generator.get_offset() == offset + 4


@activations
def test_one_kernel_each_way_and_no_synchronisation(activation, kernels_of):
    x = torch.randn(2**16, device="cuda", requires_grad=True)
    call = function(activation)
    call(x).sum().backward()
    torch.cuda.synchronize()
    dy = torch.randn_like(x)

    def step():
        torch.cuda.set_sync_debug_mode("error")
        torch.autograd.grad(call(x), x, dy)
        torch.cuda.set_sync_debug_mode("default")

    kernels = kernels_of(step)
    assert len(kernels) == 2, kernels


@activations
def test_more_than_2_to_the_31_elements(activation):
    n = 2**31 + 4096
    if torch.cuda.mem_get_info()[0] < 8 * n * 2:
        pytest.skip("needs 34 GB of GPU memory")
    x = torch.empty(n, device="cuda", dtype=torch.bfloat16).normal_()
    torch.manual_seed(1)
    expected = pair(activation, 0.3)(x)
    torch.manual_seed(1)
    y = function(activation)(x, 0.3, *parameters(activation))
    tail = slice(2**31 - 4096, None)
    torch.testing.assert_close(y[tail], expected[tail])
    assert bool((y[: 2**30] == 0).eq(expected[: 2**30] == 0).all())


@activations
def test_runs_on_the_tensors_own_device(activation):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.randn(10_000, device="cuda:1")
    assert_same(activation, x, 0.3)
    assert torch.cuda.current_device() == 0


@activations
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
        y = function(activation)(x, 0.5)
    replays = []
    for _ in range(3):
        graph.replay()
        replays.append(y.clone())
    assert not torch.equal(replays[0], replays[1])
    assert not torch.equal(replays[1], replays[2])

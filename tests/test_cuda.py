"""What only a GPU can show: that masks and values are `torch.nn.Dropout`'s own, bit for bit.

The kernel tests run on a GPU too, where there is one; these skip without.
"""

import functools
import gc

import pytest
import torch
from cases import DTYPES, activations, eager_modules, function, fused_module, parameters, rngs
from torch import nn

from fusedact import ActivityMonitor, functional, ops, random, reference
from fusedact.activations import Saved

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.fixture
def two():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")


@pytest.fixture
def cold(launch):
    """As in a new process: nothing is prepared or loaded."""
    launch._kernel.cache_clear()
    ops._prepared.cache_clear()


def pair(activation, p):
    return nn.Sequential(activation.module(*parameters(activation)), nn.Dropout(p))


def both(call, x, dy, seed=7):
    """Result, gradient, and where the generator is afterwards."""
    torch.manual_seed(seed)
    x = x.detach().requires_grad_()
    y = call(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    return y.detach(), dx, torch.cuda.default_generators[x.device.index].get_offset()


def of_roundings(dtype):
    """How far two results may be apart that compute exp in float32 each, and round to a half twice."""
    half = dtype in (torch.float16, torch.bfloat16)
    return {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-5} if half else {}


def assert_same(activation, x, p, dy=None):
    dy = torch.randn_like(x) if dy is None else dy
    expected = both(pair(activation, p), x, dy)
    result = both(lambda x: function(activation)(x, p, *parameters(activation)), x, dy)
    assert result[2] == expected[2]
    assert result[0].stride() == expected[0].stride()
    if activation.saved is Saved.INPUT:
        assert torch.equal(result[0] == 0, expected[0] == 0)
        torch.testing.assert_close(result[:2], expected[:2], **of_roundings(x.dtype))
    else:
        assert torch.equal(result[0], expected[0])
        assert torch.equal(result[1], expected[1])


def edges():
    """Sizes around those where eager's plan changes, for this GPU."""
    properties = torch.cuda.get_device_properties(0)
    grid = properties.multi_processor_count * (properties.max_threads_per_multi_processor // 256) * 256
    near = [1, 255, 256, 257, 8192, 4 * 1021, 8 * 1021, 2 * 1021]
    for multiple in (1, 2, 4, 8, 16):
        near += [multiple * grid + d for d in (-8, -4, -2, -1, 0, 1, 2, 4, 8)]
    return near


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
    if activation.from_output is None:
        torch.testing.assert_close(result[:2], expected[:2], rtol=0, atol=0)
        return
    close = of_roundings(dtype)
    torch.testing.assert_close(result[0], expected[0], **close)
    # Of a derivative that is the output plus alpha both have the absolute accuracy of a rounded output.
    wide = close.get("rtol", 1.3e-6) * (result[1].double().abs() + dy.double().abs() / 0.7)
    assert ((result[1].double() - expected[1].double()).abs() <= wide).all()


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


@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_value_does_not_decide_how_the_next_one_travels(dtype):
    """All bits of 0.0 are 0: an integer of another type than those of 0.3."""
    x = torch.randn(1000, device="cuda", dtype=dtype)
    for slope in (0.0, 0.3, -0.7, 1.0):
        fused, eager = (
            both(call, x, torch.ones_like(x))
            for call in (
                lambda x, slope=slope: functional.leaky_relu_dropout(x, 0.5, slope),
                nn.Sequential(nn.LeakyReLU(slope), nn.Dropout(0.5)),
            )
        )
        assert torch.equal(fused[0], eager[0]), slope
        assert torch.equal(fused[1], eager[1]), slope


@activations
def test_one_kernel_each_way_and_no_synchronisation(activation):
    x = torch.randn(2**16, device="cuda", requires_grad=True)
    call = function(activation)
    call(x).sum().backward()
    torch.cuda.synchronize()
    dy = torch.randn_like(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.cuda.set_sync_debug_mode("error")
        torch.autograd.grad(call(x), x, dy)
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert len([name for name in kernels if "kernel" in name]) == 2, kernels


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
@pytest.mark.usefixtures("two")
def test_runs_on_the_tensors_own_device(activation):
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


@activations
@pytest.mark.usefixtures("cold")
def test_a_capture_leaves_no_memory_behind(activation):
    """A tensor that is kept from the first call of a size would keep its graph's memory pool."""

    def reserved(n):
        x = torch.randn(n, device="cuda")
        call = function(activation)
        call(x[:4096].clone().requires_grad_()).sum().backward()  # kernels are loaded by another size
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call(x)
        del y, graph
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() - before

    reserved(8192)  # PyTorch's own share of a first capture
    assert [reserved(8192 + 4096 * i) for i in (1, 2, 3)] == [0, 0, 0]


@activations
def test_a_kernel_stays_loaded_when_triton_forgets_it(activation, launch):
    x = torch.randn(5000, device="cuda")
    assert_same(activation, x, 0.3)
    for kernel in (launch.forward_kernel, launch.backward_kernel):
        kernel.device_caches.clear()
    gc.collect()
    assert_same(activation, x, 0.3)


def captured(call, device, current=None):
    """The graph of a call on `device`, while `current` is current."""
    graph = torch.cuda.CUDAGraph()
    capture = torch.cuda.graph(graph, stream=torch.cuda.Stream(device))
    with torch.cuda.device(device), capture, torch.cuda.device(device if current is None else current):
        result = call()
    return graph, result


@activations
@rngs
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("device", [0, 1])
def test_a_capture_while_another_device_is_current(activation, rng, device):
    """Whose numbers are baked in unless the capture of the tensor's own device is seen."""
    x = torch.randn(9000, device=f"cuda:{device}", requires_grad=True)
    call = functools.partial(function(activation), x, 0.5, *parameters(activation), rng=rng)
    call().sum().backward()
    graph, y = captured(call, device, current=1 - device)
    masks = []
    for _ in range(2):
        graph.replay()
        torch.cuda.synchronize(device)
        masks.append(y.detach().clone() != 0)
    assert not torch.equal(*masks)


@activations
@rngs
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("device", [0, 1])
def test_a_call_on_a_device_while_another_one_captures(activation, rng, device):
    """It runs at once, with its own device's numbers."""
    f = functools.partial(function(activation), p=0.5, rng=rng)
    here, there = (torch.randn(9000, device=f"cuda:{i}", requires_grad=True) for i in (device, 1 - device))
    for x in (here, there):
        f(x).sum().backward()
    torch.manual_seed(1)
    expected = f(there)
    torch.manual_seed(1)
    _, (_, y) = captured(lambda: (f(here), f(there)), device)
    assert torch.equal(y, expected)


@activations
@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("make", [fused_module, eager_modules], ids=["fused", "plain"])
def test_the_monitor_counts_while_another_device_is_current(activation, make):
    """In a graph too, which counts at its replays."""
    x = torch.randn(64, 100, device="cuda:1")
    net = make(activation)
    with ActivityMonitor(net) as monitor:
        with pytest.raises(RuntimeError, match="has to be called once"):  # or the counts stand in its memory
            captured(lambda: net(x), 1, current=0)
        net(x)
        graph, _ = captured(lambda: net(x), 1, current=0)
        for _ in range(2):
            graph.replay()
        torch.cuda.synchronize(1)
        (layer,) = monitor.report().layers
    assert layer.samples == 3 * 64
    assert torch.equal(layer.fired, 3 * (x > 0).sum(0).cpu())


@activations
@rngs
@pytest.mark.usefixtures("cold")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("warm", [False, True], ids=["aligned", "misaligned"])
def test_a_capture_with_an_alignment_that_was_not_warmed_up(activation, rng, inplace, warm, monkeypatch):
    """It launches our kernels all the same, and gives what they give outside of a capture."""
    x, dy = torch.randn(2, 4097, device="cuda")

    def step(first, x, dy):
        """A call on a part of a tensor, whose gradient is a part of one."""
        leaf = x[first : first + 4096].detach().requires_grad_()
        y = function(activation)(leaf, 0.5, *parameters(activation), rng=rng)
        return y, torch.autograd.grad(y, leaf, dy[first : first + 4096])[0]

    def in_place(first, x, dy):
        leaf = x[first : first + 4096].detach().requires_grad_()
        buffer = torch.cat([x[:first], leaf])[first:]
        y = function(activation)(buffer, 0.5, *parameters(activation), inplace=True, rng=rng)
        return y, torch.autograd.grad(y, leaf, dy[first : first + 4096])[0]

    call = in_place if inplace else step
    call(int(warm), x, dy)
    monkeypatch.setattr(reference, "composition", None)
    monkeypatch.setattr(ops, "_composed_backward", None)
    for first in (0, 1):
        graph, (y, dx) = captured(lambda first=first: call(first, x, dy), 0)
        graph.replay()
        torch.cuda.synchronize()
        inputs = x[first : first + 4096].detach().requires_grad_()
        keep = y.detach() != 0
        value = activation.eager(inputs, *parameters(activation))
        assert 0.3 < keep.double().mean() < 0.7 or activation.saved is Saved.ALIVE
        torch.testing.assert_close(y, value * keep * 2)
        (expected,) = torch.autograd.grad(value, inputs, dy[first : first + 4096] * keep * 2)
        torch.testing.assert_close(dx, expected)


@activations
@pytest.mark.usefixtures("cold")
def test_a_capture_of_backward_alone_that_was_not_warmed_up(activation, monkeypatch):
    """It is the composition's, of which other tests are; here it is one that can be told."""
    monkeypatch.setattr(ops, "_composed_backward", lambda call, dy, *saved: dy * 3)
    x = torch.randn(4096, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = function(activation)(x, 0.5, *parameters(activation))
    with torch.cuda.graph(graph, stream=stream):
        (dx,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(dx, dy * 3)
    assert not torch.equal(torch.autograd.grad(y, x, dy)[0], dx)  # outside of a capture the kernel's


@activations
@pytest.mark.usefixtures("cold")
def test_a_captured_inference_needs_no_backward(activation, monkeypatch):
    x = torch.randn(9000, device="cuda", requires_grad=True)
    monkeypatch.setattr(reference, "composition", None)
    with torch.no_grad():
        function(activation)(x, 0.5)
        captured(lambda: function(activation)(x, 0.5), 0)
    function(activation)(x.detach(), 0.5)
    captured(lambda: function(activation)(x.detach(), 0.5), 0)

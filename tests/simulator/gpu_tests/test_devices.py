"""What a second device, and threads on both, do to the launcher."""

import threading

import pytest
import torch
from cases import apply, assert_same, representatives, rngs
from torch import nn
from torch.utils.checkpoint import checkpoint

import fusedact
from tests.simulator import gpu


@pytest.mark.usefixtures("no_graphs")
@representatives
@pytest.mark.parametrize("inplace", [False, True])
@rngs
def test_all_of_a_step_stays_on_the_tensors_device(activation, inplace, rng):
    """Device 0 is current. What runs on device 1 takes that device's numbers."""
    generators = torch.cuda.default_generators
    for start in (0, 1):  # the second tensor is misaligned
        x = torch.randn(5001, device="cuda:1", requires_grad=True)
        before = [generator.get_offset() for generator in generators]
        given = (x * 1.0)[start:]
        gpu.clear()
        y = apply(activation, given, 0.4, inplace=inplace, rng=rng)
        torch.autograd.grad(y, x, torch.ones_like(y))
        launches = gpu.events("launch")
        assert [event["device"] for event in launches] == [1, 1]
        assert len({event["stream"] for event in launches}) == 1
        assert generators[0].get_offset() == before[0]
        assert generators[1].get_offset() > before[1]


@representatives
def test_each_device_has_its_own_plan(activation):
    processors = [torch.cuda.get_device_properties(i).multi_processor_count for i in (0, 1)]
    assert processors[0] != processors[1]
    for device in (0, 1, 0):
        for n in (60_001, 60_000):
            assert_same(activation, torch.randn(n, device=f"cuda:{device}"), 0.3)


@representatives
def test_the_stream_is_the_one_current_on_the_tensors_device(activation):
    x = torch.randn(3000, device="cuda:1", requires_grad=True)
    stream = torch.cuda.Stream(device="cuda:1")
    with torch.cuda.stream(stream), torch.cuda.device(0):
        for _ in range(2):  # the second launch goes through the launcher's own path
            gpu.clear()
            y = apply(activation, x, 0.4)
    torch.autograd.grad(y, x, torch.ones_like(y))
    forward, backward = gpu.events("launch")
    assert forward["device"] == backward["device"] == 1
    assert forward["stream"] == backward["stream"]
    gpu.clear()
    apply(activation, x, 0.4)
    assert gpu.events("launch")[0]["stream"] != forward["stream"]


@representatives
def test_backward_allocates_on_the_tensors_device(activation):
    """Autograd's engine makes that device the current one; a call by hand doesn't."""
    x = torch.randn(3000, device="cuda:1", requires_grad=True)
    for _ in range(4):  # later calls are shared
        y, dy = apply(activation, x, 0.4), torch.ones(3000, device="cuda:1")
        (expected,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        with torch.no_grad(), torch.cuda.device(0):
            (dx,) = filter(torch.is_tensor, y.grad_fn.apply(dy))
        assert dx.device == x.device
        assert torch.equal(dx, expected)


@representatives
def test_first_calls_from_several_threads(activation, nothing_loaded):
    """On both devices at once; backward runs in the engine's threads."""
    results, errors = {}, []

    def work(i):
        try:
            x = torch.randn(7000 + i, device=f"cuda:{i % 2}", requires_grad=True)
            for _ in range(5):
                y = apply(activation, x, 0.4, rng="fast" if i > 1 else "eager")
                torch.autograd.grad(y, x, torch.ones_like(y))
            results[i] = (y == 0).float().mean().item()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(results) == 4
    assert all(dropped > 0.3 for dropped in results.values())


@representatives
def test_no_kernel_is_loaded_twice(activation, nothing_loaded):
    gpu.clear()
    for n in (1, 2, 3, 4, 5, 1000, 1001, 1024, 4095, 4096, 4097, 20_000, 100_000, 16, 1):
        for p in (0.1, 0.5):
            x = torch.randn(n, device="cuda", requires_grad=True)
            y = apply(activation, x, p)
            torch.autograd.grad(y, x, torch.ones_like(y))
    loads = [event["module"] for event in gpu.events("load")]
    assert loads
    assert len(loads) == len(set(loads))


@representatives
@pytest.mark.parametrize("preserve", [True, False])
def test_a_checkpoint_restores_the_second_devices_numbers(activation, preserve):
    x = torch.randn(5000, device="cuda:1", requires_grad=True)

    def call(x):
        return apply(activation, x, 0.3)

    torch.manual_seed(2)
    y = call(x)
    (expected,) = torch.autograd.grad(y.sum(), x)
    torch.manual_seed(2)
    again = checkpoint(call, x, use_reentrant=False, preserve_rng_state=preserve)
    (dx,) = torch.autograd.grad(again.sum(), x)
    assert torch.equal(y, again)
    assert torch.equal(dx, expected) == preserve


@representatives
def test_a_gradient_of_another_device_is_refused(activation):
    x = torch.randn(500, device="cuda:0", requires_grad=True)
    y = apply(activation, x, 0.3)
    with pytest.raises(RuntimeError, match="device"):
        torch.autograd.grad(y, x, torch.ones(500, device="cuda:1"))


def test_a_model_trains_on_the_second_device():
    net = nn.Sequential(nn.Linear(64, 64), fusedact.FusedReLUDropout(0.4), nn.Linear(64, 8)).to("cuda:1")
    net(torch.randn(32, 64, device="cuda:1")).sum().backward()
    assert net[0].weight.grad.device.index == 1


def test_a_monitor_counts_on_the_second_device():
    """A module of PyTorch's own: no call of fusedact's has made the tensor's device the current one."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).to("cuda:1")
    x = torch.randn(32, 64, device="cuda:1")
    with fusedact.ActivityMonitor(net) as monitor:
        for _ in range(2):
            net(x)
    assert {event["device"] for event in gpu.events("launch")} == {1}
    assert torch.equal(monitor.report()["1"].fired.cpu(), 2 * (net[0](x) > 0).sum(0).cpu())


def test_data_parallel():
    from torch.nn.parallel import parallel_apply

    net = nn.Sequential(fusedact.FusedReLUDropout(0.5), fusedact.FusedELUDropout(0.5))
    x = torch.randn(64, 100, device="cuda", requires_grad=True)
    ys = parallel_apply([net, net], [(x[:32],), (x[32:].to("cuda:1"),)], devices=[0, 1])
    assert [y.device.index for y in ys] == [0, 1]
    (ys[0].sum() + ys[1].sum().to("cuda:0")).backward()
    assert (x.grad != 0).any(1).all()

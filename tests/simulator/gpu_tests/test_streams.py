"""Streams whose work runs only when somebody waits for it, and launches without synchronisation."""

import torch
from cases import apply, both, representatives
from torch import nn

import fusedact
from tests.simulator import gpu


@representatives
def test_a_side_streams_work_is_seen_in_its_order(activation):
    """A launch on a wrong stream would read what isn't there yet."""
    x = torch.randn(9000, device="cuda")
    dy = torch.randn_like(x)

    def call(x):
        return apply(activation, x, 0.4)

    expected = both(call, x, dy)
    side = torch.cuda.Stream()
    with gpu.deferred():
        with torch.cuda.stream(side):
            late = torch.full_like(x, 9.0)
            late.copy_(x)
            result = both(call, late, dy)
        side.synchronize()
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[1], expected[1])


@representatives
def test_input_and_result_are_copied_asynchronously(activation):
    host = torch.randn(9000).pin_memory()
    torch.manual_seed(1)
    expected = apply(activation, host.cuda(), 0.4)
    with gpu.deferred():
        late = torch.full((9000,), 9.0, device="cuda")
        late.copy_(host, non_blocking=True)
        torch.manual_seed(1)
        result = apply(activation, late, 0.4).to("cpu", non_blocking=True)
        torch.cuda.synchronize()
    assert torch.equal(result, expected.cpu())


@representatives
def test_a_step_is_two_launches_and_nothing_else(activation):
    x = torch.randn(2**14, device="cuda", requires_grad=True)

    def call():
        return apply(activation, x, 0.3)

    call().sum().backward()
    dy = torch.randn_like(x)
    gpu.clear()
    torch.autograd.grad(call(), x, dy)
    assert [event["op"] for event in gpu.events()] == ["launch", "launch"]


@representatives
def test_tritons_launch_hooks_see_every_launch(activation):
    from triton import knobs

    seen = []
    x = torch.randn(5000, device="cuda:1", requires_grad=True)

    def step():
        apply(activation, x, 0.3).sum().backward()

    def hook(metadata):
        seen.append(metadata)

    step()
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        step()
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert len(seen) == 2
    step()
    assert len(seen) == 2


def test_a_report_counts_what_was_enqueued_on_another_stream():
    net = nn.Sequential(fusedact.FusedReLUDropout(0.5))
    x = torch.randn(64, 100, device="cuda")
    with fusedact.ActivityMonitor(net) as monitor:
        net(x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with gpu.deferred():
            with torch.cuda.stream(side):
                net(x)
            report = monitor.report()
    assert report.layers[0].samples == 128

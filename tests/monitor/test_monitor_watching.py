"""From when to when, by whom and of what a model is watched."""

import contextlib
import copy
import threading
import time

import pytest
import torch
from torch import nn
from watching import check, check_counts, kinds, net, only

from fusedact import ActivityMonitor, FusedReLUDropout, fuse, rows
from fusedact.monitor.tally import Tally
from fusedact.observer import Observer


def test_a_closed_monitor_counts_no_more():
    model = net(nn.ReLU())
    with contextlib.suppress(KeyError), ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
        raise KeyError
    model(torch.randn(5, 12))
    assert only(monitor.report()).samples == 5
    monitor.close()  # twice does no harm
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_two_monitors_of_a_fused_module():
    model = net(FusedReLUDropout(0.5))
    with ActivityMonitor(model) as outer:
        model(torch.randn(5, 12))
        with ActivityMonitor(model) as inner:
            model(torch.randn(6, 12))
        model(torch.randn(7, 12))
    assert (only(outer.report()).samples, only(inner.report()).samples) == (18, 6)
    assert model[1]._watchers == ()


@pytest.mark.parametrize("replaced", ["in the class", "in the module"])
def test_a_forward_of_the_users_own(replaced):
    class Doubled(FusedReLUDropout):
        def forward(self, input):
            return 2 * super().forward(input)

    module = Doubled(0.5) if replaced == "in the class" else FusedReLUDropout(0.5)
    if replaced == "in the module":
        module.forward = torch.relu
    x = torch.randn(50, 12)
    with ActivityMonitor(module) as monitor:
        module(x)
    check(only(monitor.report()), rows.RELU, x, tolerance=1e-6)


def test_a_watched_model_can_be_copied_and_saved(tmp_path):
    model = net(FusedReLUDropout(0.5))
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
        copied = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        for other in (copied, loaded):
            other(torch.randn(9, 12))
    assert only(monitor.report()).samples == 5
    assert copied[1]._watchers == loaded[1]._watchers == ()


def test_a_closed_monitor_keeps_its_counts():
    """A CUDA graph that was captured under it goes on with the tensors that it knows."""
    model = net(nn.ReLU())
    monitor = ActivityMonitor(model)
    model(torch.randn(5, 12))
    (tally,) = monitor._layers[0].tallies().values()
    monitor.close()
    tally.counts.add_(1)
    assert only(monitor.report()).samples == 5


def test_threads_share_a_model(monkeypatch):
    module, x = nn.ReLU(), torch.ones(10, 6)
    zeros = Tally.zeros

    def slowly(units, device):
        time.sleep(0.1)
        return zeros(units, device)

    with ActivityMonitor(module) as monitor, monkeypatch.context() as patch:
        patch.setattr(Tally, "zeros", slowly)
        threads = [threading.Thread(target=module, args=(x,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert only(monitor.report()).samples == 40


def test_modes():
    for mode, samples in [("all", 12), ("train", 5), ("eval", 7)]:
        model = net(FusedReLUDropout())
        with ActivityMonitor(model, mode=mode) as monitor:
            model.train()(torch.randn(5, 12))
            with torch.no_grad():
                model.eval()(torch.randn(7, 12))
        assert only(monitor.report()).samples == samples


def test_after_fuse():
    model = fuse(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5)))
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
    assert only(monitor.report()).samples == 5


def test_activations_of_hugging_face_after_fuse():
    """Their classes are known to `fuse` alone, so the monitor watches the places where they are called."""
    path = "transformers.activations"
    module = pytest.importorskip(path, reason="needs transformers: the extra `test`").GELUActivation()
    model, x = fuse(nn.Sequential(nn.Linear(12, 8), module, nn.Dropout(0.5))), torch.randn(5, 12)
    with ActivityMonitor(model) as monitor:
        model(x)
        model.eval()
        model(x)
    layer = only(monitor.report())
    assert (layer.layer, layer.activation, layer.samples) == ("1-2", "GELU", 10)
    assert torch.equal(layer.fired, 2 * (model[0](x) > 0).sum(0))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": nn.ReLU}, TypeError, "model must be a torch.nn.Module, but got type"),
        (
            {"model": nn.Linear(2, 2)},
            ValueError,
            "this Linear has none. Watched are fused modules and, in a model that fusedact.fuse.* nn.GELU",
        ),
        ({"stride": 0}, ValueError, "stride=0: it must be at least 1"),
        ({"stride": 2.0}, TypeError, "stride=2.0: it must be an int"),
        ({"stride": True}, TypeError, "stride=True: it must be an int"),
        ({"tau": -1}, ValueError, "tau=-1: it must be at least 0"),
        ({"tau": "1"}, ValueError, "tau='1': it must be a finite number"),
        ({"mode": "test"}, ValueError, "mode='test': it must be one of 'all', 'train', 'eval'"),
        ({"units": {"2": 1}}, ValueError, "units='2': it must name watched layers"),
        ({"units": 1.5}, TypeError, "units=1.5: it must be an int or a mapping to ints"),
        ({"units": {"1": None}}, TypeError, "units=None: it must be an int or a mapping to ints"),
    ],
)
def test_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        ActivityMonitor(**{"model": net(nn.ReLU()), **arguments})


def test_what_cannot_be_counted():
    model = net(nn.ReLU())
    with ActivityMonitor(model):
        with pytest.raises(RuntimeError, match=r"can't count inside a torch.func transform \(layer '1'\)"):
            torch.func.vmap(model)(torch.randn(5, 12))
        nested = torch.nested.nested_tensor([torch.randn(2, 12), torch.randn(3, 12)], layout=torch.jagged)
        with pytest.raises(TypeError, match="counts plain tensors, but layer '1' got a nested tensor"):
            model(nested)
        with pytest.raises(
            RuntimeError, match=r"can't count in torch.jit.trace \(layer '1'\): close it first"
        ):
            torch.jit.trace(model, torch.randn(5, 12))
        with pytest.raises(
            TypeError,
            match=r"counts strided tensors with values, but layer '1' got one of layout torch\.sparse_coo",
        ):
            model[1](torch.randn(5, 12).to_sparse())
        with pytest.raises(
            TypeError, match=r"counts strided tensors with values, .* got one of no values \(device meta\)"
        ):
            model[1](torch.randn(5, 12, device="meta"))


@kinds
@pytest.mark.parametrize("strict", [False, True])
def test_an_export_has_no_monitor(make, strict):
    model = net(make(rows.RELU)).eval()
    with ActivityMonitor(model) as monitor:
        with pytest.raises(Exception, match=r"in an export .*: close it first"):
            torch.export.export(model, (torch.randn(5, 12),), strict=strict)
        model(torch.randn(5, 12))
    assert only(monitor.report()).samples == 5


@kinds
@pytest.mark.parametrize("units", [16, 4096])
def test_no_synchronisation(make, units, cuda):
    model = net(make(rows.RELU), units).to(cuda)
    x = torch.randn(30, 12, device=cuda)
    with ActivityMonitor(model) as monitor:
        model(x)  # what Triton compiles, it may wait for
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert only(monitor.report()).samples == 60


@kinds
@pytest.mark.parametrize("units", [16, 4096])
def test_cuda_graph(make, units, cuda):
    model = net(make(rows.RELU), units).to(cuda)
    x = torch.randn(30, 12, device=cuda)
    with ActivityMonitor(model) as monitor, torch.no_grad():
        model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        monitor.end_window()
        for _ in range(3):
            graph.replay()
    check_counts(only(monitor.report()), rows.RELU, model[0](x).repeat(3, 1), -1)


def test_a_second_with_goes_on():
    model = net(nn.ReLU())
    monitor = ActivityMonitor(model)
    for n in (5, 6):
        with monitor:
            model(torch.randn(n, 12))
        model(torch.randn(99, 12))
    assert only(monitor.report()).samples == 11
    with monitor:
        monitor.end_window()
        model(torch.randn(7, 12))
    assert only(monitor.report()).samples == 7
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_ran_on_after_the_close_does_not_count_in_a_second_with():
    """As a CUDA graph does, which knows the tensors."""
    model = net(nn.ReLU())
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
        tally = next(iter(monitor._layers[0].tallies().values()))
    tally.counts.add_(1)
    with monitor:
        pass
    assert only(monitor.report()).samples == 5


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("middle", [nn.ReLU(), FusedReLUDropout(0.5)], ids=["plain", "fused"])
def test_copies_do_not_count(make, middle):
    model = net(middle)
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
        other = make(model)
        other[1] = make(model[1])
        other(torch.randn(9, 12))
    assert only(monitor.report()).samples == 5


def test_copies_hold_nothing_of_the_monitor():
    model = net(nn.ReLU())
    with ActivityMonitor(model):
        other = copy.deepcopy(model)
    hooks = [
        hook for m in other.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    assert hooks
    assert all(type(hook) is Observer and hook.look is hook.watcher is None for hook in hooks)


def test_threads_each_have_an_order_of_their_own():
    """One runs a layer while the other is between it and its activation."""
    barrier = threading.Barrier(2, timeout=20)

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear, self.relu = nn.Conv1d(3, 10, 1), nn.Linear(5, 8), nn.ReLU()

        def forward(self, x, first):
            x = self.conv(x) if first else self.linear(x)
            barrier.wait()
            return self.relu(x)

    model = Slow()
    with ActivityMonitor(model) as monitor:
        threads = [
            threading.Thread(target=model, args=(torch.randn(7, 3, 5), first)) for first in (True, False)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = {layer.layer: (layer.units, layer.axis, layer.samples) for layer in monitor.report()}
    assert found == {"relu (8 units)": (8, 2, 21), "relu (10 units)": (10, 1, 35)}


def test_an_error_inside_the_block():
    model = net(nn.ReLU())
    with contextlib.suppress(RuntimeError), ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
        model(torch.randn(5, 13))
    model(torch.randn(5, 12))
    assert only(monitor.report()).samples == 5


def test_the_capture_is_asked_for_of_the_inputs_gpu(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    module, x = nn.ReLU(), torch.randn(5, 6, device="cuda:1")
    with ActivityMonitor(module), torch.cuda.device(1):
        graph, error = torch.cuda.CUDAGraph(), None
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(1)), torch.cuda.device(0):
            try:
                module(x)
            except RuntimeError as raised:
                error = raised
    assert "must be called once" in str(error)

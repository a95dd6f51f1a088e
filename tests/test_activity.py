"""ActivityMonitor: exact counts before dropout, whatever runs the model."""

import contextlib
import copy
import functools
import json
import math
import re
import threading
import time

import pytest
import torch
from cases import (
    ACTIVATIONS,
    DTYPES,
    MODULES,
    OFFSET,
    SEED,
    activations,
    compiling,
    eager_modules,
    fused_module,
    parameters,
)
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from fusedact import (
    ActivityMonitor,
    FusedELUDropout,
    FusedLeakyDropout,
    FusedReLUDropout,
    fuse,
    ops,
    random,
)
from fusedact.counting import RUN, WHOLE, Tally

kinds = pytest.mark.parametrize("make", [fused_module, eager_modules], ids=["fused", "plain"])


def net(middle, units=16):
    return nn.Sequential(nn.Linear(12, units), middle, nn.Linear(units, 3))


def only(report):
    (layer,) = report.layers
    return layer


def recount(activation, x, dim=-1, values=None):
    """Fired, samples and mean |h| per unit in float64, from an activation's input."""
    x = x.detach().cpu().double().movedim(dim, -1)
    x = x.reshape(-1, x.shape[-1])
    h = activation.eager(x, *(parameters(activation) if values is None else values))
    return (x > 0).sum(0), len(x), h.abs().mean(0)


def check(layer, activation, x, dim=-1, tolerance=1e-12):
    fired, samples, activity = recount(activation, x, dim)
    assert torch.equal(layer.fired, fired)
    assert layer.samples == samples
    assert layer.units == len(fired)
    torch.testing.assert_close(layer.activity, activity, rtol=tolerance, atol=tolerance)
    assert layer.negative == pytest.approx(1 - fired.sum().item() / x.numel(), abs=1e-15)


@activations
@kinds
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_counts_equal_a_float64_recount(activation, make, dtype, p):
    module = make(activation, p)
    batches = [(torch.randn(n, 5, 24) * 4).to(dtype) for n in (7, 1, 30)]
    with ActivityMonitor(module) as monitor:
        for x in batches:
            module(x)
    tolerance = max(torch.finfo(dtype).eps, 1e-12)
    layer = only(monitor.report())
    check(layer, activation, torch.cat(batches), tolerance=tolerance)
    if activation.saturation is None:
        assert layer.saturated is None
    else:
        low = torch.cat(batches) < activation.saturation
        assert layer.saturated == pytest.approx(low.double().mean().item(), abs=1e-15)


@activations
def test_fused_and_plain_agree_exactly(activation):
    torch.manual_seed(1)
    x, dicts = torch.randn(100, 12), []
    for make in (fused_module, eager_modules):
        torch.manual_seed(2)
        model = net(make(activation, 0.5))
        with ActivityMonitor(model) as monitor:
            model(x).sum().backward()
        (figures,) = monitor.report().as_dict().values()
        dicts.append(figures)
    assert dicts[0] == dicts[1]


@activations
@kinds
@pytest.mark.parametrize("p", [0, 0.2, 0.5, 0.8, 0.99, 1])
def test_planted_dead_units_are_found(activation, make, p):
    planted = [0, 3, 7, 15]
    model = net(make(activation, p))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(0.1)
        model[0].bias[planted] = -1e3
    with ActivityMonitor(model) as monitor:
        for _ in range(5):
            model(torch.rand(40, 12)).sum().backward()
    report = monitor.report()
    (figures,) = report.as_dict().values()
    assert figures["samples"] == 200
    layer = only(report)
    assert (layer.fired == 0).nonzero().flatten().tolist() == planted
    assert layer.fired.sum() == 200 * 12  # dropped elements are no inactive ones
    assert figures["negative"] == 0.25
    if activation.parameter is None:
        assert figures["dead_units"] == figures["dormant_units"] == planted
        assert (figures["dead"], figures["dormant"]) == (4, 4)
        assert "4 (25.0%)" in str(report)
    else:
        assert figures["dead"] is figures["dead_units"] is None
    assert figures["saturated"] == (0.25 if activation.saturation else None)


def test_which_units_can_die():
    """Those whose negative inputs all give 0, whatever the activation's name."""
    for module, mortal in [
        (nn.ReLU(), True),
        (FusedReLUDropout(), True),
        (nn.LeakyReLU(0.0), True),
        (nn.LeakyReLU(0.1), False),
        (FusedLeakyDropout(negative_slope=0.0), True),
        (FusedLeakyDropout(negative_slope=-1.0), False),
        (FusedELUDropout(alpha=0.0), True),
        (nn.ELU(), False),
    ]:
        with ActivityMonitor(module) as monitor:
            module(-torch.ones(4, 6))
        assert only(monitor.report()).as_dict()["dead"] == (6 if mortal else None)


def test_dormant_is_redos_definition():
    """Sokar et al. 2023: at most tau times the layer's mean; equal to it counts."""
    x = torch.tensor([[4.0, 2.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0]])  # mean 2: scores 2, 1, 0.5, 0.5
    for tau, units in [(0, []), (0.49, []), (0.5, [2, 3]), (1, [1, 2, 3])]:
        module = nn.ReLU()
        with ActivityMonitor(module, tau=tau) as monitor:
            module(x)
        assert only(monitor.report()).as_dict()["dormant_units"] == units
    with ActivityMonitor(module) as monitor:
        module(-x)
    assert only(monitor.report()).as_dict()["dormant"] == 4


@activations
@kinds
def test_in_place(activation, make):
    module = make(activation)
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.inplace = True
    x = torch.randn(50, 8)
    with ActivityMonitor(module) as monitor:
        module(x.clone())
    check(only(monitor.report()), activation, x, tolerance=1e-6)


def test_windows():
    model = net(nn.ReLU(), 4)
    bias = model[0].bias.data
    model[0].weight.data.zero_()
    monitor = ActivityMonitor(model)

    def window(*values):
        bias.copy_(torch.tensor(values))
        model(torch.randn(10, 12))
        model(torch.randn(20, 12))
        return only(monitor.end_window())

    first = window(1.0, 1.0, -1.0, -1.0)
    assert first.dead.tolist() == [False, False, True, True]
    assert first.newly_dead is first.revived is first.always_dead is None
    second = window(1.0, -1.0, 1.0, -1.0)
    assert second.samples == 30
    figures = second.as_dict()
    assert (figures["newly_dead_units"], figures["revived_units"]) == ([1], [2])
    assert second.always_dead.tolist() == [False, False, False, True]
    assert monitor.report().layers == ()  # nothing ran since
    third = window(1.0, -1.0, -1.0, 1.0)
    assert not third.always_dead.any()
    model(torch.randn(5, 12))
    twice = [monitor.report() for _ in range(2)]
    assert str(twice[0]) == str(twice[1])
    assert "Window 4" in str(twice[0])
    assert "0 died, 0 revived" in str(twice[0])
    monitor.close()


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
    check(only(monitor.report()), ACTIVATIONS[0], x, tolerance=1e-6)


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
    (tally,) = monitor._layers[0].tallies.values()
    monitor.close()
    tally.counts.add_(1)
    assert only(monitor.report()).samples == 5


def test_figures_of_a_report_stay():
    model = net(nn.ReLU())
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
        report = monitor.report()
        before = str(report), only(report).fired.clone()
        model(torch.randn(500, 12))
        assert (str(report), before[1].tolist()) == (before[0], only(report).fired.tolist())


def test_counts_past_2_to_the_40():
    module = nn.ReLU()
    with ActivityMonitor(module) as monitor:
        module(torch.ones(1, 3))
        for tally in monitor._layers[0].tallies.values():
            tally.counts.add_(2**40)
        module(torch.ones(1, 3))
    layer = only(monitor.report())
    assert layer.fired.tolist() == [2**40 + 2] * 3
    assert layer.samples == 2**40 + 2


# Units --------------------------------------------------------------------------------------------------

CONVOLUTIONAL = {
    "Conv1d": (nn.Conv1d(2, 6, 3), (4, 2, 9), 1),
    "Conv2d": (nn.Conv2d(2, 6, 3), (4, 2, 9, 8), 1),
    "Conv3d": (nn.Conv3d(2, 6, 3), (4, 2, 5, 6, 7), 1),
    "Conv2d unbatched": (nn.Conv2d(2, 6, 3), (2, 9, 8), 0),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 6, 3), (4, 2, 9, 8), 1),
    "batch norm": (nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)), (4, 2, 9, 8), 1),
    "group norm": (nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6)), (4, 2, 9, 8), 1),
    "Linear": (nn.Linear(5, 6), (4, 5), -1),
    "Linear on sequences": (nn.Linear(5, 6), (4, 3, 5), -1),
    "Linear, channels last": (nn.Linear(5, 6), (4, 3, 2, 5), -1),
    "Linear, one sample": (nn.Linear(5, 6), (5,), -1),
    "flattened": (nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(0)), (1, 2, 4, 4), -1),
    "nothing, 4 dimensions": (nn.Identity(), (4, 6, 3, 3), 1),
    "nothing, 3 dimensions": (nn.Identity(), (4, 3, 6), -1),
}


@pytest.mark.parametrize("case", CONVOLUTIONAL)
def test_units_by_default(case):
    before, shape, dim = CONVOLUTIONAL[case]
    model = nn.Sequential(before, FusedReLUDropout(0.5))
    x = torch.randn(shape)
    with ActivityMonitor(model) as monitor:
        model(x)
    check(only(monitor.report()), ACTIVATIONS[0], model[0](x), dim, 1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_units_chosen(layout):
    x = torch.randn(4, 6, 5, 3).contiguous(memory_format=layout)
    for units, dim in [(1, 1), (-1, 3), (0, 0), ({"0": 2}, 2), ({}, 1)]:
        model = nn.Sequential(nn.ReLU())
        with ActivityMonitor(model, units=units) as monitor:
            model(x)
        check(only(monitor.report()), ACTIVATIONS[0], x, dim, 1e-6)


def test_a_module_that_serves_several_layers():
    """Calls of the same width add up; each width is a row."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 8), nn.Linear(8, 6), nn.ReLU()

        def forward(self, x):
            return self.relu(self.b(self.relu(self.a(x))))

    model = Block()
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 4))
        model(torch.randn(6, 4))
    figures = monitor.report().as_dict()
    assert {name: row["samples"] for name, row in figures.items()} == {"relu[6]": 11, "relu[8]": 11}


def test_an_empty_input_of_the_operator(through_kernels):
    tally = Tally.zeros(0, through_kernels)
    for shape in ((5, 0), (0, 0)):
        x = torch.empty(shape, device=through_kernels)
        torch.ops.fusedact.count_activity(x, None, (), "eager", -1, "relu", [], 31, "0", *tally)
    assert tally.counts.tolist() == [[0], [0]]


def test_empty_and_scalar_inputs():
    module = FusedReLUDropout(0.5)
    with ActivityMonitor(module) as monitor:
        module(torch.empty(0, 4))
        assert monitor.report().layers == ()
        module(torch.tensor(-1.0))
        module(torch.tensor(1.0))
    layer = only(monitor.report())
    assert (layer.samples, layer.fired.tolist(), layer.layer) == (2, [1], "(the model)")


# With the rest of PyTorch ------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_counts_once(make, reentrant):
    model = net(make(ACTIVATIONS[0]))
    x = torch.randn(30, 12, requires_grad=True)
    with ActivityMonitor(model) as monitor:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    check(only(monitor.report()), ACTIVATIONS[0], model[0](x), tolerance=1e-6)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(make, dtype):
    model, x = net(make(ACTIVATIONS[0])), torch.randn(30, 12)
    with ActivityMonitor(model) as monitor, torch.autocast("cpu", dtype):
        model(x).float().sum().backward()
        middle = model[0](x)
    assert middle.dtype is dtype
    check(only(monitor.report()), ACTIVATIONS[0], middle, tolerance=1e-6)


@kinds
def test_a_selective_checkpoint_saves_nothing_of_it(make):
    """What it saves, it looks up by the order of the operators that its function calls."""
    model = net(make(ACTIVATIONS[0], 0.0))
    x = torch.randn(30, 12, requires_grad=True)

    def saved(context, operator, *args, **kwargs):
        relu = operator is torch.ops.aten.relu.default
        return CheckpointPolicy.MUST_SAVE if relu else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, saved)
    with ActivityMonitor(model) as monitor:
        y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
        found = torch.autograd.grad(y.sum(), x)
    assert torch.equal(found[0], torch.autograd.grad(model(x).sum(), x)[0])
    check(only(monitor.report()), ACTIVATIONS[0], model[0](x), tolerance=1e-6)


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


@pytest.mark.parametrize("compiled", [False, True])
def test_inference_mode(compiled):
    torch.compiler.reset()
    model, x = net(FusedReLUDropout()), torch.randn(5, 12)
    with ActivityMonitor(model) as monitor:
        run = torch.compile(model, backend="aot_eager") if compiled else model
        with contextlib.nullcontext() if compiled else torch.inference_mode():
            run(x)
        run(x).sum().backward()
        with torch.inference_mode():
            run(x)
        assert only(monitor.end_window()).samples == 15
        run(x)
    check(only(monitor.report()), ACTIVATIONS[0], model[0](x), tolerance=1e-6)


@activations
@kinds
def test_compiled(activation, make):
    torch.compiler.reset()
    model = net(make(activation))
    batches = [torch.randn(n, 12) for n in (8, 8, 5, 9)]
    with ActivityMonitor(model) as monitor:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for x in batches[:2]:
            compiled(x).sum().backward()
        check(only(monitor.end_window()), activation, model[0](torch.cat(batches[:2])), tolerance=1e-6)
        for x in batches[2:]:
            compiled(x).sum().backward()
    compiled(batches[0])  # may still count, but not here
    check(only(monitor.report()), activation, model[0](torch.cat(batches[2:])), tolerance=1e-6)


@kinds
def test_compiled_for_two_monitors(make):
    torch.compiler.reset()
    model = net(make(ACTIVATIONS[0]))
    compiled = torch.compile(model, backend="aot_eager")
    with ActivityMonitor(model) as one, ActivityMonitor(model, mode="train") as other:
        for n, training in ((8, True), (5, False), (3, True)):
            compiled.train(training)
            compiled(torch.randn(n, 12)).sum().backward()
    assert (only(one.report()).samples, only(other.report()).samples) == (16, 11)


@activations
def test_operator(activation):
    arguments = (
        torch.randn(5, 12),
        None,
        (),
        "eager",
        -1,
        activation.name,
        list(parameters(activation)),
        31,
        "0",
    )
    arguments += Tally.zeros(12, "cpu")
    torch.library.opcheck(torch.ops.fusedact.count_activity.default, arguments)


@pytest.mark.parametrize("inside", [True, False])
def test_compiled_and_checkpointed(inside):
    """The checkpoint inside the compiled function, or around it."""
    torch.compiler.reset()
    model, x = net(FusedReLUDropout(0.0)), torch.randn(30, 12, requires_grad=True)
    with ActivityMonitor(model) as monitor:

        def recomputed(x):
            return checkpoint(model, x, use_reentrant=False)

        if inside:
            y = torch.compile(recomputed, backend="aot_eager")(x)
        else:
            y = checkpoint(torch.compile(model, backend="aot_eager"), x, use_reentrant=False)
        y.sum().backward()
    check(only(monitor.report()), ACTIVATIONS[0], model[0](x), tolerance=1e-6)


def test_compiled_before_the_monitor_says_so():
    torch.compiler.reset()
    model, x = net(FusedReLUDropout()), torch.randn(8, 12)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    with ActivityMonitor(model) as monitor:
        compiled(x)
        report = monitor.report()
        if not report.layers:
            assert report.silent == ("1",)
            assert "Not called: 1" in str(report)
            assert "torch.compiler.reset()" in str(report)
        torch.compiler.reset()
        compiled(x)
    assert only(monitor.report()).samples in (8, 16)


def test_after_fuse():
    model = fuse(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5)))
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 12))
    assert only(monitor.report()).samples == 5


def test_outputs_and_gradients_are_those_without_it():
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model, x = net(FusedReLUDropout(0.5)), torch.randn(30, 12, requires_grad=True)
        monitor = ActivityMonitor(model) if watched else None
        y = model(x)
        results.append((y, *torch.autograd.grad(y.sum(), (x, *model.parameters()))))
        if monitor:
            monitor.close()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@kinds
@pytest.mark.parametrize("units", [16, 4096])
def test_no_synchronisation(make, units, cuda):
    model = net(make(ACTIVATIONS[0]), units).to(cuda)
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
    model = net(make(ACTIVATIONS[0]), units).to(cuda)
    x = torch.randn(30, 12, device=cuda)
    with ActivityMonitor(model) as monitor, torch.no_grad():
        model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        monitor.end_window()
        for _ in range(3):
            graph.replay()
    check_counts(only(monitor.report()), ACTIVATIONS[0], model[0](x).repeat(3, 1), -1)


# Reports -----------------------------------------------------------------------------------------------


def test_as_dict_is_plain():
    model = nn.Sequential(*(MODULES[a.name]() for a in ACTIVATIONS))
    with ActivityMonitor(model) as monitor:
        model(torch.randn(9, 4))
    figures = monitor.report().as_dict()
    assert json.loads(json.dumps(figures)) == figures
    names = {"units", "samples", "dead", "dormant", "saturated", "negative", "mean_activity", "dead_units"}
    assert all(names <= set(row) for row in figures.values())
    assert all(row["samples"] == 9 and row["units"] == 4 for row in figures.values())


TABLE = """\
Window 1; |h|, dormant and saturated are of the samples read; dormant: at most 0.025 of the layer's mean |h|
layer  activation  units  samples       dead  negative  trend   read  mean |h|    dormant  saturated
1      ReLU            4    32769  1 (25.0%)     25.0%      -  16913       1.5  1 (25.0%)          -
2      ELU             4    32769          -     25.0%      -  16913       1.5  1 (25.0%)       0.0%"""


def test_table():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.ELU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0, -5.0]))
    with ActivityMonitor(model) as monitor:
        model(torch.zeros(WHOLE // 4, 2))
        model(torch.zeros(WHOLE // 4 + 1, 2))
    assert str(monitor.report()) == TABLE


def advised(module, *windows):
    """The last window's advice for inputs of 200 samples (or as given) per window."""
    monitor = ActivityMonitor(module)
    for values in windows[:-1]:
        module(torch.tensor(values).expand(200, -1))
        monitor.end_window()
    module(torch.tensor(windows[-1]).expand(200, -1))
    monitor.close()
    return " ".join(monitor.report().advice())


def test_advice_needs_its_cause():
    alive, dead = [1.0] * 10, [-1.0] + [1.0] * 9
    assert advised(nn.ReLU(), alive) == ""
    assert advised(nn.ReLU(), alive, alive) == ""
    text = advised(nn.ReLU(), dead)
    assert "1 (10.0%) of 10 units never fired in 200 samples. LeakyReLU or ELU" in text
    assert "learning rate" not in text
    assert "He init" not in text
    assert (
        "1 units died since the last window and 0 revived, in 200 samples. A lower learning rate"
        in advised(nn.ReLU(), alive, dead)
    )
    assert "learning rate" not in advised(nn.ReLU(), dead, dead[::-1])  # one died, another revived
    text = advised(nn.ReLU(), dead, dead)
    assert "1 of 10 units were dead in every window so far" in text
    assert "He initialisation" in text
    assert "learning rate" not in text
    assert "at p = 0.8" in advised(FusedReLUDropout(0.8), dead)
    assert "lower p" not in advised(FusedReLUDropout(0.2), dead)
    assert "lower p" not in advised(FusedReLUDropout(0.8), [*dead, 1.0])  # less than a tenth
    assert advised(nn.LeakyReLU(), dead) == ""
    assert advised(nn.ELU(), [-1.0, 1.0]) == ""
    assert "50.0% of the values are saturated in 200 samples" in advised(nn.ELU(), [-4.0, 1.0])


def test_advice_from_few_samples_is_to_take_more():
    module = nn.ReLU()
    with ActivityMonitor(module) as monitor:
        module(-torch.ones(20, 3))
    (line,) = monitor.report().advice()
    assert line == "(the model): 3 units silent in 20 samples, too few to tell. Take a longer window."


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), FusedELUDropout())
    with ActivityMonitor(model) as monitor:
        monitor.plot()  # empty
        for _ in range(3):
            model(torch.randn(50, 4))
            monitor.end_window()
        model(torch.randn(50, 4))
    figure = monitor.plot()
    figure.savefig(tmp_path / "plot.png")
    left, right = figure.axes
    assert list(left.lines[0].get_xdata()) == [1, 2, 3, 4]
    assert len(right.patches) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_plot_without_finite_activity(value):
    pytest.importorskip("matplotlib")
    with ActivityMonitor(model := net(nn.ReLU())) as monitor:
        model[1](torch.full((5, 12), value))
    monitor.plot()
    assert not only(monitor.report()).dormant.any()


# Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": nn.ReLU}, TypeError, "model has to be a torch.nn.Module, but got type"),
        ({"model": nn.Linear(2, 2)}, ValueError, "this Linear has none. Functions can't be watched"),
        ({"stride": 0}, ValueError, "stride has to be an int of at least 1, but got stride=0"),
        ({"stride": 2.0}, TypeError, "stride has to be an int, but got stride=2.0"),
        ({"stride": True}, TypeError, "stride has to be an int, but got stride=True"),
        ({"tau": -1}, ValueError, "tau has to be at least 0, but got tau=-1"),
        ({"tau": "1"}, ValueError, "tau has to be a finite number, but got tau='1'"),
        ({"mode": "test"}, ValueError, "mode has to be one of 'all', 'train', 'eval', but got mode='test'"),
        ({"units": {"2": 1}}, ValueError, r"units has to name watched layers \('1'\), but got '2'"),
        ({"units": 1.5}, TypeError, "units has to be an int or a mapping to ints, but got 1.5"),
        ({"units": {"1": None}}, TypeError, "units has to be an int or a mapping to ints, but got None"),
    ],
)
def test_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        ActivityMonitor(**{"model": net(nn.ReLU()), **arguments})


def test_a_dimension_that_is_not_there():
    model = net(nn.ReLU())
    with (
        ActivityMonitor(model, units=2),
        pytest.raises(ValueError, match=r"units has to name a dimension.*layer '1' has 2, and got 2"),
    ):
        model(torch.randn(5, 12))


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
            TypeError, match=r"counts dense tensors, but layer '1' got one of layout torch\.sparse_coo"
        ):
            model[1](torch.randn(5, 12).to_sparse())
        with pytest.raises(TypeError, match=r"counts dense tensors, .* got one of no values \(device meta\)"):
            model[1](torch.randn(5, 12, device="meta"))


@kinds
@pytest.mark.parametrize("strict", [False, True])
def test_an_export_has_no_monitor(make, strict):
    model = net(make(ACTIVATIONS[0])).eval()
    with ActivityMonitor(model) as monitor:
        with pytest.raises(Exception, match=r"in an export .*: close it first"):
            torch.export.export(model, (torch.randn(5, 12),), strict=strict)
        model(torch.randn(5, 12))
    assert only(monitor.report()).samples == 5


# Which samples are read ---------------------------------------------------------------------------------


def read_samples(x, dim, stride):
    """Those whose |h| is read, as [samples, units]: of x's memory [outer, units, inner], runs of inner."""
    if x.numel() <= WHOLE:
        stride = 1
    units, inner = x.shape[dim], x.stride(dim)
    view = (
        x.detach().cpu().as_strided((x.numel() // (units * inner), units, inner), (units * inner, inner, 1))
    )
    runs = [run for sample in view for run in sample.split(RUN, 1)]
    return torch.cat([run.T for run in runs[::stride]])


SAMPLED = {
    "units last": ((700, 96), -1),
    "sequences": ((7, 100, 96), -1),
    "positions fill runs": ((6, 8, 16, 128), 1),
    "positions do not": ((6, 8, 9, 163), 1),
    "fewer positions than a run": ((300, 40, 3, 2), 1),
    "one sample": ((1, 2**17), -1),
    "read whole": ((2, WHOLE // 2), -1),
    "just too large": ((17, WHOLE // 16), -1),
}


def check_sampled(layer, activation, x, dim, stride):
    read = read_samples(x, dim, stride)
    fired, samples, _ = recount(activation, x, dim)
    assert (layer.samples, layer.activity_samples) == (samples, len(read))
    assert torch.equal(layer.fired, fired)
    _, _, activity = recount(activation, read)
    tolerance = max(torch.finfo(x.dtype).eps, 1e-6)
    torch.testing.assert_close(layer.activity, activity, rtol=tolerance, atol=tolerance)
    if activation.saturation is None:
        assert layer.saturated is None
    else:
        low = (read < activation.saturation).double().mean().item()
        assert layer.saturated == pytest.approx(low, abs=1e-12)


@activations
@kinds
@pytest.mark.parametrize("stride", [1, 2, 31])
@pytest.mark.parametrize("case", SAMPLED)
def test_every_strideth_sample_is_read(activation, make, stride, case):
    shape, dim = SAMPLED[case]
    x, module = torch.randn(shape) * 4, make(activation)
    with ActivityMonitor(module, units=dim, stride=stride) as monitor:
        module(x)
    check_sampled(only(monitor.report()), activation, x, dim, stride)


# In the kernels -----------------------------------------------------------------------------------------


class Generator:
    """A GPU's, as much of it as a call asks for."""

    offset = OFFSET

    def initial_seed(self):
        return SEED

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset


@pytest.fixture
def through_kernels(device, monkeypatch):
    """The device of modules that run the kernels: in the interpreter CPU tensors pass for a small GPU's.

    What an input has to have to be sampled is less, too.
    """
    monkeypatch.setattr("fusedact.counting.WHOLE", 2**14)
    if device == "cpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.cuda, "default_generators", [Generator()])
        monkeypatch.setattr(random, "processors", lambda device: (4, 512))
    ops._prepared.cache_clear()
    yield device
    ops._prepared.cache_clear()


@pytest.fixture
def launched(launch, monkeypatch):
    """What is launched: names, and the tensors' bytes."""
    launches = []
    call = launch.Kernel.__call__

    def recorded(self, grid, first, others, scalars):
        tensors = [tensor for tensor in (first, *others) if tensor is not None]
        launches.append((self._function.__name__, tensors, self._constants))
        call(self, grid, first, others, scalars)

    monkeypatch.setattr(launch.Kernel, "__call__", recorded)
    return launches


def names(launched):
    return [name for name, _, _ in launched]


FROM_BITS = ["input_kernel", "forward_kernel", "fired_kernel"]
FROM_INPUT = ["input_kernel", "input_kernel", "forward_kernel"]
FROM_WHOLE = ["input_kernel", "forward_kernel"]

WATCHED = {
    "units last": ((157, 128), -1, FROM_BITS),
    "positions": ((10, 8, 16, 16), 1, FROM_BITS),
    "units first": ((128, 157), 0, FROM_INPUT),  # a period of all elements
    "few elements": ((30, 16), -1, FROM_WHOLE),
    "odd": ((157, 131), -1, FROM_INPUT),
}


@activations
@pytest.mark.parametrize("rng", random.RNGS)
@pytest.mark.parametrize("case", WATCHED)
def test_fused_and_plain_agree_in_the_kernels(activation, rng, case, through_kernels, launched, monkeypatch):
    shape, dim, expected = WATCHED[case]
    x = (torch.randn(shape, device=through_kernels) * 4).half()
    fused = MODULES[activation.name](0.5, *parameters(activation), rng=rng)
    with ActivityMonitor(fused, units=dim) as monitor:
        fused(x)
    assert names(launched) == expected
    with monkeypatch.context() as patch:
        patch.setattr("fusedact.counting._kernels", lambda: None)
        plain = eager_modules(activation)
        with ActivityMonitor(plain, units=dim) as reference:
            plain[0](x)
    layer, other = only(monitor.report()), only(reference.report())
    check_counts(layer, activation, x, dim)
    assert torch.equal(layer.fired, other.fired)
    same = ("samples", "activity_samples", "negative", "saturated")
    assert [getattr(layer, name) for name in same] == [getattr(other, name) for name in same]
    torch.testing.assert_close(layer.activity, other.activity, rtol=1e-3, atol=0)


@activations
@pytest.mark.parametrize("p", [0.2, 0.8])
@pytest.mark.parametrize("inplace", [False, True])
def test_planted_dead_units_in_the_kernels(activation, p, inplace, through_kernels, launched):
    planted = [0, 17, 63]
    module = fused_module(activation, p, inplace)
    bias = torch.zeros(64, device=through_kernels)
    bias[planted] = -1e3
    x = torch.rand(260, 64, device=through_kernels) + 0.1 + bias
    with ActivityMonitor(module) as monitor:
        module(x.clone())
    assert names(launched) == FROM_BITS
    layer = only(monitor.report())
    assert (layer.fired == 0).nonzero().flatten().tolist() == planted
    assert layer.fired.sum() == 260 * 61


def test_two_monitors_and_a_copied_input_in_the_kernels(through_kernels, launched):
    """In place, an ELU of negative alpha works on a copy."""
    module = FusedELUDropout(0.5, alpha=-0.5, inplace=True)
    x = torch.randn(260, 64, device=through_kernels)
    with ActivityMonitor(module) as outer, ActivityMonitor(module) as inner:
        module(x.clone())
    assert names(launched) == [FROM_BITS[0], *FROM_BITS, FROM_BITS[-1]]
    for monitor in (outer, inner):
        check_counts(only(monitor.report()), ACTIVATIONS[0], x, -1)


@pytest.mark.parametrize("same", [True, False])
def test_signs_count_only_for_their_own_layout(same, through_kernels):
    x = torch.rand(260, 64, device=through_kernels)
    tally = Tally.zeros(64, through_kernels)
    signs = torch.zeros(5 * 128, dtype=torch.int32, device=through_kernels)
    stride = x.stride() if same else x.t().stride()
    torch.ops.fusedact.count_activity(x, signs, stride, "fast", -1, "relu", [], 31, "0", *tally)
    assert tally.counts[0].tolist() == [260] + [0 if same else 260] * 64


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signs_of_special_values(activation, dtype, through_kernels, launched):
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.smallest_normal / 4, info.max, info.min]
    x = torch.tensor(special, dtype=dtype, device=through_kernels).repeat(2100, 1)
    module = fused_module(activation)
    with ActivityMonitor(module) as monitor:
        module(x)
    assert names(launched) == FROM_BITS
    assert only(monitor.report()).fired.tolist() == [0, 0, 2100, 0, 0, 2100, 2100, 0]


def test_results_are_the_same_with_and_without_it_in_the_kernels(through_kernels):
    x = torch.randn(260, 64, device=through_kernels, requires_grad=True)
    for activation in ACTIVATIONS:
        results = []
        for watched in (False, True):
            module = fused_module(activation)
            if through_kernels == "cpu":
                torch.cuda.default_generators[0].set_offset(OFFSET)
            torch.manual_seed(0)
            monitor = ActivityMonitor(module) if watched else None
            y = module(x)
            results.append((y, *torch.autograd.grad(y.sum(), x)))
            assert monitor is None or only(monitor.report()).samples == 260
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_recomputed_forward_counts_once_in_the_kernels(through_kernels, launched):
    module, x = FusedReLUDropout(0.5), torch.randn(260, 64, device=through_kernels, requires_grad=True)
    with ActivityMonitor(module) as monitor:
        checkpoint(module, x, use_reentrant=False, preserve_rng_state=False).sum().backward()
    assert names(launched).count("forward_kernel") == 2
    check_counts(only(monitor.report()), ACTIVATIONS[0], x, -1)


def test_a_loop_that_ends_within_a_tile_is_counted_from_the_input(through_kernels, launched, monkeypatch):
    """Programs' words then don't follow each other as the elements do."""
    if through_kernels == "cuda":
        pytest.skip("needs a GPU of 3 multiprocessors, which the interpreter plays")
    monkeypatch.setattr(random, "processors", lambda device: (3, 512))
    module, x = FusedReLUDropout(0.5), torch.randn(260, 64)
    with ActivityMonitor(module) as monitor:
        module(x)
    assert names(launched) == FROM_INPUT
    check_counts(only(monitor.report()), ACTIVATIONS[0], x, -1)


def test_views_that_have_no_bits_of_their_own(through_kernels, launched):
    """The kernels run on a copy; the monitor reads one too."""
    module, x = FusedReLUDropout(0.5), torch.randn(260, 128, device=through_kernels)
    for view in (x[:, ::2], x[:, :1].expand(-1, 64), torch._neg_view(x)):
        with ActivityMonitor(module) as monitor:
            module(view)
        check_counts(only(monitor.report()), ACTIVATIONS[0], view, -1)
    module(x.t())  # unwatched
    with ActivityMonitor(module) as monitor:
        module(x.t())
    assert "fired_kernel" not in names(launched)
    check_counts(only(monitor.report()), ACTIVATIONS[0], x.t(), -1)


@activations
@pytest.mark.parametrize(
    ("case", "rng", "inplace"),
    [
        ("units last", "eager", False),
        ("units last", "fast", True),
        ("positions", "eager", True),
        ("few elements", "eager", False),
        ("odd", "eager", False),
    ],
)
def test_compiled_for_the_kernels(activation, rng, case, inplace, through_kernels, launched, monkeypatch):
    """A compiler's graph has the operators; in the interpreter too."""
    monkeypatch.setattr(ops, "_OPERATORS", through_kernels)
    torch.compiler.reset()
    shape, dim, expected = WATCHED[case]
    x = (torch.randn(shape, device=through_kernels) * 4).half()
    module = MODULES[activation.name](0.5, *parameters(activation), inplace=inplace, rng=rng)
    with ActivityMonitor(module, units=dim) as monitor:
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        compiled(x.clone())
    assert sorted(names(launched)) == sorted(expected)
    check_counts(only(monitor.report()), activation, x, dim)


# What forward and backward move per element with a monitor, by what they move without.
MOST = 1.05


@activations
@pytest.mark.parametrize(
    ("dtype", "rng"),
    [(torch.bfloat16, "eager"), (torch.bfloat16, "fast"), (torch.float32, "eager")],
    ids=["bfloat16", "bfloat16-fast", "float32"],
)
def test_a_monitor_moves_few_bytes_more(activation, rng, dtype, through_kernels, launched):
    """Each tensor of a launch once, and of the sampled input what is read of it; full tiles."""
    module = MODULES[activation.name](0.5, rng=rng)
    x = torch.randn(512, 64, dtype=dtype, device=through_kernels, requires_grad=True)
    moved = []
    for watched in (False, True):
        launched.clear()
        with ActivityMonitor(module) if watched else contextlib.nullcontext():
            module(x).sum().backward()
        assert names(launched) == [*(FROM_BITS if watched else ["forward_kernel"]), "backward_kernel"]
        moved.append(sum(bytes_moved(*launch) for launch in launched))
    assert 1 < moved[1] / moved[0] < MOST


def bytes_moved(name, tensors, constants):
    if name == "input_kernel":
        assert (constants["FIRED"], constants["ACTIVITY"]) == (False, True)
        return tensors[0].nbytes * 17 / 512  # rows
    if name == "fired_kernel":
        return tensors[0].numel() * 4  # the tally is a few words
    return sum(tensor.nbytes for tensor in tensors)


def check_counts(layer, activation, x, dim):
    fired, samples, _ = recount(activation, x, dim)
    assert torch.equal(layer.fired, fired)
    assert layer.samples == samples


# The counting kernels ------------------------------------------------------------------------------------

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
    from fusedact.kernels import counting
    from fusedact.kernels.dropout import COLUMNS, TILE

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
    monkeypatch.setattr(counting, "_PROGRAMS", 1)  # as few as there may be, so that each has many tiles
    kernel, grid, scalars = counting._fired.__wrapped__(n, units, inner, 2, lanes)
    kernel(grid, planes[:, 1], (counts,), scalars)
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


@activations
@pytest.mark.parametrize(
    ("layout", "shape"),
    [*((layout, SHAPES[0]) for layout in LAYOUTS), *(("contiguous", shape) for shape in SHAPES[1:])],
    ids=str,
)
@pytest.mark.parametrize("dim", [-1, 1])
def test_the_kernel_counts_what_plain_pytorch_counts(activation, layout, shape, dim, device):
    x = LAYOUTS[layout](torch.randn(shape, device=device) * 4)
    check_kernel(activation, x, dim)


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_and_special_values(activation, dtype, device):
    special = torch.tensor([0.0, -0.0, -3.0, torch.inf, -torch.inf, torch.nan, 1e-4, -1e-4], dtype=dtype)
    check_kernel(activation, special.to(device).repeat(50, 1), -1)
    check_kernel(activation, (torch.randn(500, 33, device=device) * 4).to(dtype), -1)


def test_the_kernel_and_a_single_units_stride(device):
    """It may be anything."""
    check_kernel(ACTIVATIONS[0], torch.randn(40, device=device).as_strided((40, 1), (1, 7)), -1)


def check_kernel(activation, x, dim):
    """Both figures together, and each of them."""
    from fusedact.kernels import counting

    values = parameters(activation)
    fired, samples, mean = (
        torch.as_tensor(figure, device=x.device) for figure in recount(activation, x, dim)
    )
    units = len(fired)
    low = torch.zeros_like(fired)
    if activation.saturation is not None:
        low = (x < activation.saturation).movedim(dim, -1).reshape(-1, units).sum(0)
    dense = x.clone() if x.is_neg() or not torch.ops.aten.is_non_overlapping_and_dense(x) else x
    inner = dense.stride(dim) if units > 1 else 1
    shape = x.numel() // (units * inner), units, inner
    for figures in ((True, True), (True, False), (False, True)):
        counts = torch.full((2, 1 + units), 2**40, device=x.device)
        totals = torch.ones(units, dtype=torch.float64, device=x.device)
        for _ in range(2):
            arguments = dense, shape, min(inner, RUN), 1, int(samples), figures, counts, totals
            assert counting.count_input(activation, *(values or (0.0,)), *arguments)
        expected = [torch.cat([samples.view(1), figure]) for figure in (fired, low)]
        expected = torch.stack([row * asked for row, asked in zip(expected, figures, strict=True)])
        assert torch.equal(counts, 2**40 + 2 * expected)
        tolerance = 1e-12 if x.dtype is torch.float64 else 1e-5
        total = 1 + 2 * samples * mean if figures[1] else torch.ones_like(mean)
        torch.testing.assert_close(totals, total, rtol=tolerance, atol=0, equal_nan=True)


COMPILE = r"""
import re, torch
from benchmarks import machine_code
from fusedact import random
from fusedact.counting import RUN, Tally
from fusedact.functional import ACTIVATIONS
from fusedact.kernels import counting, launch

x = torch.empty(2**20, dtype=torch.bfloat16)
bits, tally = torch.empty(2**16, dtype=torch.int32), Tally.zeros(16, "cpu")

def show(kernel, grid, *arguments):
    compiled = kernel._function.warmup(*arguments, grid=grid, **kernel._constants)
    loads = set(re.findall(r"ld[.]global[.](\S*)", compiled.asm["ptx"]))
    spills = machine_code._nvidia(compiled).spill_bytes
    print(kernel._function.__name__, f"{spills} spilled", *loads, f"shared {compiled.metadata.shared}")

for row in ACTIVATIONS:
    for shape in ((4096, 1024, 1), (64, 64, 3136)):
        for figures in ((True, False), (False, True)):
            run = min(shape[2], RUN)
            kernel, grid, first, last = counting._input(row, x.dtype, 0.3, shape, run, 31, figures)
            show(kernel, grid, x, *tally, *first, 1, *last)
for units, inner in ((128, 1), (4096, 1), (64, 3136)):
    kernel, grid, scalars = counting._fired(2**30, units, inner, 2, 8)
    show(kernel, grid, bits, tally[0], *scalars)
for row in ACTIVATIONS:
    for rng in random.RNGS:
        plan = random.plan(rng, 2**20, 2, 132, 2048)
        prepared = launch.prepare(row, x.dtype, "cpu", 2**20, 0.3, 0.5, plan, watched=True)
        signs = None if prepared.signs is None else bits
        show(prepared.forward, prepared.grid, x, x, bits, signs, *prepared.walk, *(1,) * 4,
            *prepared.forward_scalars)
"""


def test_the_kernels_compile_to_wide_loads_without_spills():
    lines = compiling(COMPILE)
    assert len(lines) == 4 * len(ACTIVATIONS) + 3 + len(random.RNGS) * len(ACTIVATIONS)
    for line in lines:
        kernel, expected = line.split()[0], r"0 spilled v4\.b32 shared 0"
        if kernel == "input_kernel":  # a sum over threads goes through shared memory, once in a program
            expected = r"0 spilled v4\.b32 shared \d+"
        elif kernel == "fired_kernel":
            expected = r"0 spilled b32 shared 0"
        assert re.fullmatch(f"{kernel} {expected}", line)

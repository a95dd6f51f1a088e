"""ActivityMonitor: exact counts before dropout, whatever runs the model."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import ACTIVATIONS, DTYPES, MODULES, eager_modules, fused_module, parameters
from torch import nn
from torch.utils.checkpoint import checkpoint

from fusedact import ActivityMonitor, FusedELUDropout, FusedLeakyDropout, FusedReLUDropout, fuse

activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
kinds = pytest.mark.parametrize("make", [fused_module, eager_modules], ids=["fused", "plain"])


def net(middle, units=16):
    return nn.Sequential(nn.Linear(12, units), middle, nn.Linear(units, 3))


def only(report):
    (layer,) = report.layers
    return layer


def recount(activation, x, dim=-1, values=None):
    """Fired, samples and mean |h| per unit in float64, from an activation's input."""
    x = x.detach().double().movedim(dim, -1)
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


def test_a_closed_monitor_keeps_its_counts():
    """A CUDA graph that was captured under it goes on with the tensors that it knows."""
    model = net(nn.ReLU())
    monitor = ActivityMonitor(model)
    model(torch.randn(5, 12))
    ((counts, _),) = monitor._layers[0].tallies.values()
    monitor.close()
    counts += 1
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
        for counts, _ in monitor._layers[0].tallies.values():
            counts += 2**40
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


@activations
def test_operator(activation):
    tally = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(12, dtype=torch.float64)
    arguments = (torch.randn(5, 12), -1, activation.name, list(parameters(activation)), *tally)
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
    assert only(monitor.report()).p == 0.5


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


def test_no_synchronisation(cuda):
    model = net(FusedReLUDropout(0.5)).to(cuda)
    x = torch.randn(30, 12, device=cuda)
    with ActivityMonitor(model) as monitor:
        model(x)  # what Triton compiles, it may wait for
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert only(monitor.report()).samples == 60


def test_cuda_graph(cuda):
    model = net(nn.ReLU()).to(cuda)
    x = torch.randn(30, 12, device=cuda)
    with ActivityMonitor(model) as monitor, torch.no_grad():
        model(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            model(x)
        monitor.end_window()
        for _ in range(3):
            graph.replay()
    assert only(monitor.report()).samples == 90


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


def test_table():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.ELU())
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, 2.0, 3.0, -5.0]))
    with ActivityMonitor(model) as monitor:
        model(torch.zeros(1000, 2))
    assert str(monitor.report()) == (
        "Window 1; dormant: at most 0.025 of the layer's mean |h|\n"
        "layer  activation  units  samples       dead    dormant  negative  saturated  mean |h|  trend\n"
        "1      ReLU            4     1000  1 (25.0%)  1 (25.0%)     25.0%          -       1.5      -\n"
        "2      ELU             4     1000          -  1 (25.0%)     25.0%       0.0%       1.5      -"
    )


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
    text = advised(nn.ReLU(), dead, dead)
    assert "1 of 10 units were dead in every window so far" in text
    assert "He initialisation" in text
    assert "learning rate" not in text
    assert "at p = 0.8" in advised(FusedReLUDropout(0.8), dead)
    assert "lower p" not in advised(FusedReLUDropout(0.2), dead)
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


# Errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": nn.ReLU}, TypeError, "model has to be a torch.nn.Module, but got type"),
        ({"model": nn.Linear(2, 2)}, ValueError, "this Linear has none.*fusedact.fuse"),
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


# The kernel -------------------------------------------------------------------------------------------

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
    from fusedact.kernels import activity

    x = LAYOUTS[layout](torch.randn(shape, device=device) * 4)
    check_kernel(activity, activation, x, dim)


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_and_special_values(activation, dtype, device):
    from fusedact.kernels import activity

    special = torch.tensor([0.0, -0.0, -3.0, torch.inf, -torch.inf, torch.nan, 1e-4, -1e-4], dtype=dtype)
    check_kernel(activity, activation, special.to(device).repeat(50, 1), -1)
    check_kernel(activity, activation, (torch.randn(500, 33, device=device) * 4).to(dtype), -1)


def test_the_kernel_and_a_single_units_stride(device):
    """It may be anything."""
    from fusedact.kernels import activity

    check_kernel(activity, ACTIVATIONS[0], torch.randn(40, device=device).as_strided((40, 1), (1, 7)), -1)


def check_kernel(module, activation, x, dim):
    values = parameters(activation)
    fired, samples, mean = recount(activation, x, dim)
    units = len(fired)
    counts = torch.full((3, units), 2**40, device=x.device)
    totals = torch.ones(units, dtype=torch.float64, device=x.device)
    for _ in range(2):
        assert module.count(activation, x, dim, *(values or (0.0,)), counts, totals)
    low = torch.zeros_like(fired)
    if activation.saturation is not None:
        low = (x < activation.saturation).movedim(dim, -1).reshape(-1, units).sum(0)
    expected = torch.stack([fired, low, torch.full_like(fired, samples)])
    assert torch.equal(counts, 2**40 + 2 * expected)
    tolerance = 1e-12 if x.dtype is torch.float64 else 1e-5
    torch.testing.assert_close(totals, 1 + 2 * samples * mean, rtol=tolerance, atol=0, equal_nan=True)


COMPILE = """
import re, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

target = GPUTarget("cuda", 90, 32)

class Driver:  # as much of a GPU as compilation asks for
    def get_current_device(self): return 0
    def get_current_target(self): return target
    def get_current_stream(self, device=None): return 7
    def get_active_torch_device(self): return torch.device("cpu")

driver.set_active(Driver())
from benchmarks import machine_code
from fusedact.functional import ACTIVATIONS
from fusedact.kernels import activity

x = torch.empty(16, dtype=torch.bfloat16)
tally = torch.empty(3, 16, dtype=torch.int64), torch.empty(16, dtype=torch.float64)
for row in ACTIVATIONS:
    for shape in ((4096, 1024, 1), (64, 64, 3136)):
        grid, constants = activity._launch(row, 0.3, False, *shape)
        compiled = activity.activity_kernel.warmup(x, *tally, *shape, grid=grid, **constants)
        spills = machine_code._nvidia(compiled).spill_bytes
        print(spills, *set(re.findall(r"ld[.]global[.](\\S*)", compiled.asm["ptx"])))
"""


def test_the_kernel_compiles_to_wide_loads_without_spills():
    """For a GPU that need not be there; in a process of its own, as this one may have the interpreter."""
    pytest.importorskip("triton", reason="needs Triton's compiler")
    root = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join((str(root / "src"), str(root)))
    result = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == ["0 v4.b32"] * 2 * len(ACTIVATIONS)

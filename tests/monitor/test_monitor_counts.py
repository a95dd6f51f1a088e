"""Exact counts before dropout, in windows, of all inputs that there are."""

import math

import pytest
import torch
from cases import DTYPES, eager_modules, fused_module, values, watched
from torch import nn
from watching import check, kinds, net, only

from fusedact import ActivityMonitor, FusedELUDropout, FusedLeakyDropout, FusedReLUDropout, rows
from fusedact.kernels.counted import Row


@watched
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
    ranges = activation.saturated(*values(activation))
    if not ranges:
        assert layer.saturated is None
    else:
        low = torch.cat(batches).double() <= ranges[0][1]
        assert layer.saturated == pytest.approx(low.double().mean().item(), abs=1e-15)


@watched
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


@watched
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
    if not activation.parameters:
        assert figures["dead_units"] == figures["dormant_units"] == planted
        assert (figures["dead"], figures["dormant"]) == (4, 4)
        assert "4 (25.0%)" in str(report)
    else:
        assert figures["dead"] is figures["dead_units"] is None
    assert figures["saturated"] == (0.25 if activation is rows.ELU else None)


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


@watched
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
        for tally in monitor._layers[0].tallies().values():
            tally.counts[Row.FIRED] += 2**40
        module(torch.ones(1, 3))
    layer = only(monitor.report())
    assert layer.fired.tolist() == [2**40 + 2] * 3
    assert layer.samples == 2**40 + 2


def test_empty_and_scalar_inputs():
    module = FusedReLUDropout(0.5)
    with ActivityMonitor(module) as monitor:
        module(torch.empty(0, 4))
        assert monitor.report().layers == ()
        module(torch.tensor(-1.0))
        module(torch.tensor(1.0))
    layer = only(monitor.report())
    assert (layer.samples, layer.fired.tolist(), layer.layer) == (2, [1], "(the model)")


def test_outputs_and_gradients_are_those_without_it():
    results = []
    for counted in (False, True):
        torch.manual_seed(0)
        model, x = net(FusedReLUDropout(0.5)), torch.randn(30, 12, requires_grad=True)
        monitor = ActivityMonitor(model) if counted else None
        y = model(x)
        results.append((y, *torch.autograd.grad(y.sum(), (x, *model.parameters()))))
        if monitor:
            monitor.close()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


NOT_FINITE = [math.nan, math.inf, -math.inf]


@kinds
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("shape", [(4000, 6), (20_000, 6), (40, 6, 21, 16)], ids=str)
def test_one_value_among_thousands_that_is_not_finite(make, value, shape):
    """It is counted, and all other figures are those without it."""
    module, x = make(rows.RELU, 0.0), torch.randn(shape)
    dirty = x.clone()
    dirty[shape[0] // 2, 4] = value if len(shape) == 2 else x[shape[0] // 2, 4]
    if len(shape) > 2:
        dirty[shape[0] // 2, 4, 3, 5] = value
    dirty[:, 2] = -1.0
    x[:, 2] = -1.0
    reports = []
    for batch in (x, dirty):
        with ActivityMonitor(module, stride=1) as monitor:
            module(batch)
        reports.append(only(monitor.report()))
    clean, found = reports
    assert (found.nan + found.inf).tolist() == [0, 0, 0, 0, 1, 0]
    assert (int(found.nan.sum()), int(found.inf.sum())) == ((1, 0) if math.isnan(value) else (0, 1))
    assert found.as_dict()["nan_units" if math.isnan(value) else "inf_units"] == [4]
    assert found.as_dict()["dead_units"] == clean.as_dict()["dead_units"] == [2]
    assert found.as_dict()["dormant_units"] == clean.as_dict()["dormant_units"] == [2]
    others = [0, 1, 2, 3, 5]
    assert torch.equal(found.activity[others], clean.activity[others])
    assert found.activity[4] == pytest.approx(clean.activity[4].item(), rel=1e-2)
    assert found.negative == pytest.approx(clean.negative, abs=1e-3)
    assert found.finite_samples == found.samples


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_diverged_net_is_not_dead(value):
    model = net(nn.ReLU(), 8)
    with ActivityMonitor(model) as monitor:
        model(torch.randn(500, 12))
        monitor.end_window()
        model[0].weight.data.fill_(value)
        model[0].bias.data.fill_(value)
        model(torch.rand(500, 12))
    report = monitor.report()
    layer = only(report)
    assert not layer.dead.any()
    assert not layer.newly_dead.any()
    assert not layer.dormant.any()
    assert (layer.nan + layer.inf).tolist() == [500] * 8
    kind = "NaN" if math.isnan(value) else "infinite"
    assert f"Not finite: 1: 4000 inputs of 8 units are {kind}, in 500 samples." in str(report)
    assert report.advice() == []


def test_a_dead_unit_that_diverges_has_not_revived():
    module = nn.ReLU()
    with ActivityMonitor(module) as monitor:
        module(torch.tensor([[-1.0, 1.0]]))
        monitor.end_window()
        module(torch.tensor([[math.nan, 1.0]]))
    assert only(monitor.report()).as_dict()["revived_units"] == []


def test_of_large_inputs_all_samples_are_checked():
    """Where the kernels' bits don't tell: also those that aren't read for |h|."""
    module, x = nn.ReLU(), torch.randn(30_000, 4)
    x[7, 1] = math.nan
    with ActivityMonitor(module) as monitor:
        module(x)
    layer = only(monitor.report())
    assert layer.activity_samples < layer.samples == layer.finite_samples
    assert layer.nan.tolist() == [0, 1, 0, 0]

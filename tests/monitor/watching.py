"""What the monitor's tests share: small nets, and a recount of an activation's input."""

import pytest
import torch
from cases import eager_modules, fused_module, values
from torch import nn

kinds = pytest.mark.parametrize("make", [fused_module, eager_modules], ids=["fused", "plain"])


def net(middle, units=16):
    return nn.Sequential(nn.Linear(12, units), middle, nn.Linear(units, 3))


def only(report):
    (layer,) = report.layers
    return layer


def recount(activation, x, dim=-1, numbers=None):
    """Fired, samples and mean |h| per unit in float64, from an activation's input."""
    x = x.detach().cpu().double().movedim(dim, -1)
    x = x.reshape(-1, x.shape[-1])
    h = activation.function(x, *(values(activation) if numbers is None else numbers))
    return (x > 0).sum(0), len(x), h.abs().mean(0)


def check(layer, activation, x, dim=-1, tolerance=1e-12):
    fired, samples, activity = recount(activation, x, dim)
    assert torch.equal(layer.fired, fired)
    assert layer.samples == samples
    assert layer.units == len(fired)
    torch.testing.assert_close(layer.activity, activity, rtol=tolerance, atol=tolerance)
    assert layer.negative == pytest.approx(1 - fired.sum().item() / x.numel(), abs=1e-15)


def check_counts(layer, activation, x, dim):
    fired, samples, _ = recount(activation, x, dim)
    assert torch.equal(layer.fired, fired)
    assert layer.samples == samples

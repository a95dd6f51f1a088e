"""Every activation in `fuse` and `ActivityMonitor`, by its row alone."""

import pytest
import torch
from cases import activations, eager_modules, fused_module, public, values
from torch import nn

import fusedact
from fusedact import rows
from fusedact.monitor.facts import within


@activations
def test_fuse_finds_it(activation):
    if public(activation).activation is None or activation is rows.IDENTITY:
        pytest.skip("PyTorch has no such activation module")
    net = nn.Sequential(nn.Linear(8, 16), eager_modules(activation)[0], nn.Dropout(0.3), nn.Linear(16, 2))
    report = fusedact.fusion_report(fusedact.fuse(net))
    assert (len(report.fused), len(report.left)) == (1, 0)
    x, outputs = torch.randn(5, 8), []
    for model in (net, fusedact.fuse(net)):
        torch.manual_seed(1)
        outputs.append(model(x))
    assert torch.equal(*outputs)


@activations
def test_the_monitor_counts_its_dead_and_saturated_inputs(activation):
    if activation is rows.IDENTITY:
        pytest.skip("dropout alone lets nothing die")
    x = torch.cat([torch.linspace(-6, 6, 400), torch.tensor([-0.0, 3.0, -3.0])]).unsqueeze(1).repeat(1, 3)
    x[:, 1] = -2.0
    layer = fused_module(activation)
    with fusedact.ActivityMonitor(layer) as monitor:
        layer(x)
    (found,) = monitor.report().layers
    numbers = values(activation)
    dead, saturated = activation.dead(*numbers), activation.saturated(*numbers)
    assert torch.equal(found.fired, (x > 0).sum(0))
    if dead:
        assert found.dead.tolist() == within(x, dead).all(0).tolist()
    else:
        assert found.dead is None
    if saturated:
        assert found.saturated == pytest.approx(within(x, saturated).double().mean().item())
    else:
        assert found.saturated is None
    torch.testing.assert_close(
        found.activity, activation.function(x.double(), *numbers).abs().mean(0), rtol=1e-5, atol=1e-6
    )


@activations
def test_dead_and_saturated_ranges_are_where_the_gradient_says(activation):
    """Against autograd in float64: exactly 0, and below a twentieth of the largest slope."""
    x = torch.linspace(-40, 40, 160_001, dtype=torch.float64, requires_grad=True)
    numbers = values(activation)
    (slope,) = torch.autograd.grad(activation.function(x * 1.0, *numbers).sum(), x)
    dead = within(x.detach(), activation.dead(*numbers))
    saturated = within(x.detach(), activation.saturated(*numbers))
    assert not slope[dead].any()
    if dead.any():
        inside = torch.nn.functional.max_pool1d((~dead).double().view(1, 1, -1), 5, 1, 2).view(-1) == 0
        assert (slope != 0)[~dead & ~inside].float().mean() > 0.99
    limit = 0.05 * slope.abs().max()
    assert (slope.abs()[saturated] <= limit * 1.01).all()
    if saturated.any():
        # At each end of a range the slope leaves the limit within a twentieth.
        for low, high in activation.saturated(*numbers):
            for end, step in ((low, -0.06), (high, 0.06)):
                if abs(end) < 30:
                    i = int((x.detach() - (end + step)).abs().argmin())
                    assert slope[i].abs() > limit

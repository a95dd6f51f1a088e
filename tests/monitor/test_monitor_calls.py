"""Which call of a forward is which: repeated calls of one module count apart, in their order."""

import pytest
import torch
from torch import nn
from watching import only

from fusedact import ActivityMonitor


class Recurrent(nn.Module):
    """One cell and one activation for every step."""

    def __init__(self):
        super().__init__()
        self.cell, self.relu = nn.Linear(6, 6), nn.ReLU()

    def forward(self, x, steps):
        for _ in range(steps):
            x = self.relu(self.cell(x))
        return x


def test_repeated_calls_count_apart_in_their_order():
    model = Recurrent()
    model.cell.weight.data.copy_(torch.eye(6))
    model.cell.bias.data.copy_(torch.tensor([-1.0, -1, -1, 0, 0, 0]))
    with ActivityMonitor(model) as monitor:
        for _ in range(3):
            model(torch.tensor([[0.5, 1.5, 2.5, 1, 1, 1]]).repeat(40, 1), 3)
    report = monitor.report()
    dead = {layer.layer: layer.as_dict()["dead_units"] for layer in report}
    assert dead == {"relu[1]": [0], "relu[2]": [0, 1], "relu[3]": [0, 1, 2]}
    assert [(layer.samples, layer.calls) for layer in report] == [(120, 3)] * 3
    assert report.varying == {}
    assert "Varying" not in str(report)


def test_a_varying_number_of_calls_says_so():
    model = Recurrent()
    with ActivityMonitor(model) as monitor:
        for steps in (2, 4, 3):
            model(torch.randn(5, 6), steps)
    report = monitor.report()
    assert {layer.layer: layer.calls for layer in report} == {
        f"relu[{i}]": n for i, n in enumerate((3, 3, 2, 1), 1)
    }
    assert report.varying == {"relu": (2, 4)}
    assert "Varying: relu ran 2 to 4 times in a forward of the model." in str(report)


def test_each_window_has_its_own_number_of_calls():
    """The names stay, so that windows can be compared."""
    model = Recurrent()
    with ActivityMonitor(model) as monitor:
        for steps in (3, 1):
            model(torch.randn(5, 6), steps)
            report = monitor.end_window()
        assert [layer.layer for layer in report] == ["relu[1]"]
        assert report.varying == {}
    assert monitor.report().silent == ("relu",)
    with pytest.raises(KeyError, match="layer 'relu' was not called in window 3"):
        monitor.report()["relu"]


def test_calls_outside_a_forward_of_the_model_are_a_forward_each():
    model = Recurrent()
    with ActivityMonitor(model) as monitor:
        model(torch.randn(5, 6), 1)
        for _ in range(3):
            model.relu(torch.randn(5, 6))
    assert (only(monitor.report()).layer, only(monitor.report()).samples) == ("relu", 20)


def test_an_error_in_a_forward_ends_it():
    model = Recurrent()
    with ActivityMonitor(model) as monitor:
        with pytest.raises(RuntimeError):
            model(torch.randn(5, 6), 2).view(7)
        with pytest.raises(TypeError):
            model(torch.randn(5, 6), "2")
        for _ in range(2):
            model.relu(torch.randn(5, 6))
        model(torch.randn(5, 6), 2)
    assert [layer.samples for layer in monitor.report()] == [20, 10]


def test_windows_follow_each_call():
    model = Recurrent()
    model.cell.weight.data.zero_()
    with ActivityMonitor(model) as monitor:
        for bias in (1.0, -1.0):
            model.cell.bias.data.fill_(bias)
            model(torch.randn(5, 6), 2)
            report = monitor.end_window()
    assert [(layer.layer, int(layer.newly_dead.sum())) for layer in report] == [
        ("relu[1]", 6),
        ("relu[2]", 6),
    ]

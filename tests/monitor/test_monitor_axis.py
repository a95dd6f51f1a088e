"""Along which axis units stand: by the order of calls alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watching import check, net, only

from fusedact import ActivityMonitor, FusedReLUDropout, rows

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
    check(only(monitor.report()), rows.RELU, model[0](x), dim, 1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_units_chosen(layout):
    x = torch.randn(4, 6, 5, 3).contiguous(memory_format=layout)
    for units, dim in [(1, 1), (-1, 3), (0, 0), ({"0": 2}, 2), ({}, 1)]:
        model = nn.Sequential(nn.ReLU())
        with ActivityMonitor(model, units=units) as monitor:
            model(x)
        check(only(monitor.report()), rows.RELU, x, dim, 1e-6)


def test_a_module_that_serves_several_layers():
    """Each call of a forward is a line."""

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
    found = {name: (row["samples"], row["units"]) for name, row in figures.items()}
    assert found == {"relu[1]": (11, 8), "relu[2]": (11, 6)}


def test_a_dimension_that_is_not_there():
    model = net(nn.ReLU())
    with (
        ActivityMonitor(model, units=2),
        pytest.raises(
            ValueError, match=r"units=2: it must name a dimension of the input of layer '1', which has 2"
        ),
    ):
        model(torch.randn(5, 12))


# By the order of calls ----------------------------------------------------------------------------------


class Steps(nn.Module):
    """Modules and functions, run in their order; the modules are registered in another."""

    def __init__(self, *steps, activations_first=False):
        super().__init__()
        self.steps = steps
        modules = [(str(i), step) for i, step in enumerate(steps) if isinstance(step, nn.Module)]
        for name, module in sorted(modules, key=lambda pair: is_activation(pair[1]) != activations_first):
            self.add_module(name, module)

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def is_activation(module):
    return isinstance(module, nn.ReLU | FusedReLUDropout)


class ChannelsFirst(nn.LayerNorm):
    """As torchvision's LayerNorm2d."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scaled(nn.Module):
    """A layer of one's own, channels first."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.gamma[:, None, None]


class Weighted(nn.Module):
    """Parameters that say nothing of units, as a feature pyramid's weights of branches do."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weights[0] * x + self.weights[1] * x.flip(0)


class WeightedBlock(Weighted):
    """The same with a layer inside."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return super().forward(self.layer(x))


class Standardised(nn.Module):
    """A convolution of one's own, without a bias."""

    def __init__(self, before, after):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight / self.weight.std())


class Positions(nn.Module):
    """An embedding of positions, as transformers add it."""

    def __init__(self, positions, features):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, positions, features))

    def forward(self, x):
        return x + self.embedding


class Projection(nn.Module):
    """A linear layer of one's own, without a bias, its weight as GPT-2 has it."""

    def __init__(self, before, after):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(before, after))

    def forward(self, x):
        return x @ self.weight


# What runs before the activation, the input's shape, and the axis of the ten units.
ORDERED = {
    "Conv1d, mean": ((nn.Conv1d(3, 10, 3), lambda x: x.mean(-1)), (7, 3, 9), 1),
    "Conv1d, transposed": ((nn.Conv1d(3, 10, 3), lambda x: x.transpose(1, 2)), (7, 3, 9), 2),
    "Conv1d, transposed, as many positions": (
        (nn.Conv1d(3, 10, 3, padding=1), lambda x: x.transpose(1, 2)),
        (10, 3, 10),
        2,
    ),
    "Conv2d, flatten(2)": ((nn.Conv2d(3, 10, 3), lambda x: x.flatten(2)), (7, 3, 6, 5), 1),
    "Conv2d, as many positions": ((nn.Conv2d(3, 10, 3, padding=1),), (10, 3, 10, 10), 1),
    "Conv2d, as many samples, mean": ((nn.Conv2d(3, 10, 3), lambda x: x.mean((2, 3))), (10, 3, 6, 5), 1),
    "Conv2d, channels moved last": ((nn.Conv2d(3, 10, 3), lambda x: x.permute(0, 2, 3, 1)), (7, 3, 6, 5), 3),
    "Conv2d, channels moved last, as many": (
        (nn.Conv2d(3, 10, 3, padding=1), lambda x: x.permute(0, 2, 3, 1)),
        (10, 3, 10, 10),
        3,
    ),
    "Conv2d unbatched": ((nn.Conv2d(3, 10, 3),), (3, 6, 5), 0),
    "Linear, transposed": ((nn.Linear(3, 10), lambda x: x.transpose(1, 2)), (7, 4, 3), 1),
    "Linear, transposed, as many tokens": ((nn.Linear(3, 10), lambda x: x.transpose(1, 2)), (7, 10, 3), 1),
    "Linear, as many of all": ((nn.Linear(3, 10),), (10, 10, 3), 2),
    "Linear, time first": ((nn.Linear(3, 10), lambda x: x.transpose(0, 1)), (7, 4, 3), 2),
    "Linear, to an image": ((nn.Linear(3, 160), lambda x: x.view(-1, 10, 4, 4)), (7, 3), 1),
    "LayerNorm": (
        (nn.Conv1d(3, 4, 1), lambda x: x.transpose(1, 2), nn.Linear(4, 10), nn.LayerNorm(10)),
        (7, 3, 5),
        2,
    ),
    "LayerNorm, channels first": ((nn.Conv2d(3, 10, 3), ChannelsFirst(10)), (7, 3, 6, 5), 1),
    "LayerNorm, channels first, as many": (
        (nn.Conv2d(3, 10, 3, padding=1), ChannelsFirst(10)),
        (7, 3, 10, 10),
        1,
    ),
    "a layer of one's own": ((nn.Linear(5, 8), nn.Conv2d(3, 10, 1), Scaled(10)), (7, 3, 6, 5), 1),
    "BatchNorm of tokens": (
        (nn.Linear(3, 10), lambda x: x.flatten(0, 1), nn.BatchNorm1d(10), lambda x: x.view(-1, 10, 10)),
        (7, 10, 3),
        2,
    ),
    "a layer of one's own, as many samples": ((nn.Conv2d(3, 10, 1), Scaled(10)), (10, 3, 6, 5), 1),
    "a layer of one's own, cropped to as many positions": (
        (nn.Conv2d(3, 10, 1), Scaled(10), lambda x: x[..., :10]),
        (7, 3, 8, 12),
        1,
    ),
    "weights of branches": ((nn.Conv1d(3, 10, 1), Weighted()), (7, 3, 6), 1),
    "weights of branches in a block": ((WeightedBlock(nn.Conv2d(3, 10, 1)),), (7, 3, 6, 2), 1),
    "a convolution of one's own": ((Standardised(3, 10),), (7, 3, 6, 5), 1),
    "a convolution of one's own, as many positions": ((Standardised(3, 10),), (7, 3, 12, 12), 1),
    "a position's embedding": ((nn.Linear(3, 10), Positions(4, 10)), (7, 4, 3), 2),
    "a linear layer of one's own": (
        (nn.Conv2d(3, 4, 1), lambda x: x.movedim(1, -1), Projection(4, 10)),
        (7, 3, 6, 5),
        3,
    ),
    "LayerNorm, channels first, as many, copied": (
        (nn.Conv2d(3, 10, 3, padding=1), ChannelsFirst(10), lambda x: x.contiguous()),
        (7, 3, 10, 10),
        1,
    ),
    "InstanceNorm unbatched": ((nn.InstanceNorm1d(10),), (10, 6), 0),
    "Linear, concatenated": ((nn.Linear(3, 5), lambda x: torch.cat([x, -x], -1)), (7, 6, 4, 3), 3),
    "Linear, transposed and copied, as many samples": (
        (nn.Linear(3, 10), lambda x: x.transpose(1, 2).contiguous()),
        (10, 4, 3),
        1,
    ),
    "Conv3d, channels last in memory, as many positions": (
        (
            nn.Conv3d(3, 10, 3, padding=1),
            lambda x: x.contiguous(memory_format=torch.channels_last_3d),
        ),
        (2, 3, 10, 10, 10),
        1,
    ),
    "LSTM, transposed": (
        (nn.LSTM(3, 10, batch_first=True), lambda x: x[0].transpose(1, 2)),
        (7, 4, 3),
        1,
    ),
    "LSTM": ((nn.LSTM(3, 10, batch_first=True), lambda x: x[0]), (7, 4, 3), 2),
    "LSTM, its last state": ((nn.LSTM(3, 10, batch_first=True), lambda x: x[0][:, -1]), (7, 4, 3), 1),
    "concatenated": ((nn.Conv2d(3, 5, 3), lambda x: torch.cat([x, -x], 1)), (7, 3, 6, 5), 1),
    "PReLU between": ((nn.Conv2d(3, 10, 3), nn.PReLU()), (7, 3, 6, 5), 1),
    "residual": ((nn.Conv2d(3, 10, 1), nn.BatchNorm2d(10), lambda x: x + x.flip(0)), (7, 3, 6, 5), 1),
}


@pytest.mark.parametrize("first", [False, True], ids=["registered last", "registered first"])
@pytest.mark.parametrize("case", ORDERED)
def test_the_axis_goes_by_the_order_of_calls(case, first):
    before, shape, axis = ORDERED[case]
    model = Steps(*before, nn.ReLU(), activations_first=first)
    planted = [2, 5, 9]

    def kill(module, args):
        args[0].abs_()
        where = [slice(None)] * args[0].ndim
        where[axis] = planted
        args[0][tuple(where)] = -1.0
        return args

    model.eval().steps[-1].register_forward_pre_hook(kill)
    with ActivityMonitor(model) as monitor, torch.no_grad():
        model(torch.randn(shape))
    layer = only(monitor.report())
    assert (layer.units, layer.axis, layer.as_dict()["axis"]) == (10, axis, axis)
    assert layer.as_dict()["dead_units"] == planted


def test_each_activation_has_its_own_axis():
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 4), nn.ReLU())
    with ActivityMonitor(model) as monitor:
        model(torch.randn(7, 3, 6, 6))
    assert [(layer.axis, layer.units) for layer in monitor.report()] == [(1, 10), (1, 4)]
    assert "1      ReLU           1     10" in str(monitor.report())


def test_no_layer_of_the_last_forward_tells():
    model = nn.Sequential(nn.ReLU(), nn.Conv1d(10, 10, 1))
    with ActivityMonitor(model) as monitor:
        for _ in range(2):
            model(torch.randn(7, 10, 6))
    layer = only(monitor.report())
    assert (layer.axis, layer.units, layer.calls) == (2, 6, 2)


def test_the_axis_of_inputs_that_differ_in_their_dimensions():
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    with ActivityMonitor(model) as monitor:
        model(torch.randn(4, 5))
        model(torch.randn(4, 3, 5))
        layer = only(monitor.end_window())
        assert (layer.axis, layer.samples) == (-1, 16)
        model(torch.randn(4, 3, 5))
    assert only(monitor.report()).axis == 2  # of this window's alone

"""Planted dead channels and units, found exactly in models as people write them, fused and compiled."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusedact import ActivityMonitor, FusedReLUDropout, fuse

pytestmark = pytest.mark.usefixtures("device")  # simulated GPUs run these too

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def plain_operators():
    """Neither cuDNN nor attention in one kernel: a simulated GPU has no such libraries."""
    with torch.backends.cudnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
        yield


def plant(layer, units):
    """Keep these units of a layer below 0; others reach above it."""
    with torch.no_grad():
        layer.bias.fill_(0.3)
        layer.weight[units] = 0
        layer.bias[units] = -1.0


class InCode(nn.Module):
    """A CNN whose activations and dropouts are functions."""

    def __init__(self):
        super().__init__()
        self.conv, self.conv2, self.head = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 12, 3), nn.Linear(12, 14)
        self.drop = nn.Dropout(0.5)
        self.planted = {"forward: ": [[1, 4], [0, 11], [3]]}
        for layer, units in zip((self.conv, self.conv2, self.head), *self.planted.values(), strict=True):
            plant(layer, units)

    def forward(self, x):
        x = self.drop(F.relu(self.conv(x)))
        x = F.dropout(F.relu(self.conv2(x)), 0.3, self.training)
        return self.drop(torch.relu(self.head(x.mean((2, 3)))))


class Residual(nn.Module):
    """Torchvision's block: one ReLU for all calls; a dropout after one of them."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(10, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.conv2, self.bn2 = nn.Conv2d(10, 10, 3, padding=1), nn.BatchNorm2d(10)
        plant(self.bn1, [2, 7])
        self.planted = {"relu[1]": [2, 7], "relu[2]": []}

    def forward(self, x):
        out = self.dropout(self.relu(self.bn1(self.conv1(x))))
        return self.relu(self.bn2(self.conv2(out)) + x)


class Encoder(nn.Module):
    """A transformer; its activations are functions in PyTorch's code unless `module`."""

    def __init__(self, module):
        super().__init__()
        activation = nn.ReLU() if module else F.relu
        layer = nn.TransformerEncoderLayer(8, 2, 20, 0.1, activation, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        for layer in self.encoder.layers:
            plant(layer.linear1, [5, 19])
        self.planted = {"": [[5, 19], [5, 19]]}

    def forward(self, x, mask=None):
        return self.encoder(x, src_key_padding_mask=mask)


class Sequence(nn.Module):
    """An LSTM, then an MLP. The activation is registered first or last."""

    def __init__(self, first):
        super().__init__()
        if first:
            self.middle = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        self.lstm, self.linear, self.out = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 10), nn.Linear(10, 2)
        if not first:
            self.middle = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        plant(self.linear, [0, 9])
        self.planted = {"middle.0": [0, 9]}

    def forward(self, x):
        hidden = self.lstm(x.to(self.lstm.weight_hh_l0.device))[0]
        return self.out(self.middle(self.linear(hidden.to(x.device))))


def cnn():
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(2),
        nn.Linear(16, 5),
        FusedReLUDropout(0.2),
    )
    plant(model[0], [3, 8])
    model.planted = {"1": [3, 8]}
    return model


IMAGES, TOKENS = (40, 3, 6, 6), (40, 7, 8)
MODELS = {
    "functional pairs": (InCode, IMAGES),
    "shared ReLU": (Residual, (40, 10, 6, 6)),
    "transformer": (lambda: Encoder(False), TOKENS),
    "transformer with modules": (lambda: Encoder(True), TOKENS),
    "LSTM then MLP": (lambda: Sequence(False), (40, 7, 6)),
    "registered first": (lambda: Sequence(True), (40, 7, 6)),
    "CNN": (cnn, IMAGES),
}


def check_planted(model, report):
    """Dead units of each layer that is named, or, of a name's beginning, of all in their order."""
    for name, planted in model.planted.items():
        if planted and isinstance(planted[0], list):
            found = [layer.as_dict()["dead_units"] for layer in report if layer.layer.startswith(name)]
            assert found == planted
        else:
            assert report[name].as_dict()["dead_units"] == planted
    for layer in report:
        assert layer.samples > 0
        assert not layer.nan.any()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("how", ["as it is", "fused", "compiled", "fused and compiled"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", MODELS)
def test_planted_units_are_found(name, how, training, channels_last):
    make, shape = MODELS[name]
    if channels_last and len(shape) < 4:
        pytest.skip("has no images")
    fused = "fused" in how
    if name in ("functional pairs", "transformer") and not fused:
        pytest.skip("calls functions: they are watched in fused models")
    model = make().to(DEVICE)
    if isinstance(model, Sequence):
        model.lstm.cpu()  # a simulated GPU has no kernel for it
    planted = model.planted
    if fused:
        model = fuse(model)
        model.planted = planted
    x = torch.randn(shape, device=DEVICE)
    if channels_last:
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.contiguous(memory_format=torch.channels_last),
        )
    model.train(training)
    run = model
    if "compiled" in how:
        torch.compiler.reset()
        run = torch.compile(model, backend="aot_eager", fullgraph=not isinstance(model, Sequence))
    with ActivityMonitor(model) as monitor:
        for _ in range(2):
            with contextlib.nullcontext() if training else torch.no_grad():
                y = run(x)
            if training:
                y.sum().backward()
    report = monitor.report()
    check_planted(model, report)
    assert {layer.calls for layer in report} == {2}
    assert report.silent == ()
    monitor.close()


def test_places_have_the_names_of_their_code():
    model = fuse(InCode())
    with ActivityMonitor(model) as monitor:
        model(torch.randn(IMAGES))
    names = [layer.layer for layer in monitor.report()]
    assert len(set(names)) == 3
    assert all(name.startswith("forward: ") and "relu" in name for name in names)


@pytest.mark.parametrize("masked", [False, True])
def test_a_transformer_leaves_its_fast_path_while_it_is_watched(masked):
    model = Encoder(True).eval()
    x, mask = torch.randn(TOKENS), torch.zeros(TOKENS[:2], dtype=torch.bool)
    mask[:, 5:] = True
    with torch.no_grad():
        expected = model(x, mask if masked else None)
        with ActivityMonitor(model) as monitor, ActivityMonitor(model):
            found = model(x, mask if masked else None)
        again = model(x, mask if masked else None)
    assert len(monitor.report()) == 2
    assert model.encoder.use_nested_tensor
    same = ~mask if masked else torch.ones_like(mask)  # the fast path sets the rest to 0
    torch.testing.assert_close(found[same], expected[same])
    assert torch.equal(again, expected)


def test_an_encoder_that_wants_no_nested_tensors_stays_so():
    model = Encoder(True).eval()
    model.encoder.use_nested_tensor = False
    with torch.no_grad(), ActivityMonitor(model):
        model(torch.randn(TOKENS))
    assert model.encoder.use_nested_tensor is False


def test_watching_does_not_keep_pairs_from_being_fused(monkeypatch):
    """A monitor's hooks only look."""
    from fusedact.fusion import recognise

    fused = []

    def by_kernels(row, x, values, p, inplace, rng, watchers):
        fused.append(row.name)
        for watcher in watchers:
            watcher(x)
        return torch.nn.functional.dropout(row.function(x, *values), p)

    monkeypatch.setattr(recognise, "by_kernels", by_kernels)
    model = fuse(Residual())
    x = torch.randn(4, 10, 6, 6)
    model(x)
    with ActivityMonitor(model) as monitor:
        model(x)
    assert fused == ["relu", "relu"]
    assert [layer.samples for layer in monitor.report()] == [144, 144]
    model.relu.register_forward_hook(lambda *_: None)
    model(x)
    assert fused == ["relu", "relu"]

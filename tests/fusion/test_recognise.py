"""Which calls are activations and dropouts: of PyTorch's, and of Hugging Face's by what they compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from compare import X
from torch import nn

from fusedact.activations import ROWS
from fusedact.fusion import recognise

VALUES = {"threshold": 0.1, "value": -0.2, "min_val": -0.5, "max_val": 0.7, "beta": 2.0, "lambd": 0.3}


class Row:
    """Stands for a row that doesn't exist yet."""

    parameter = None

    def __init__(self, name):
        self.name, self.module, self.eager = name, type(name, (nn.Module,), {}), lambda x: x


@pytest.fixture
def rows(monkeypatch):
    """A row for every activation that is known by name."""
    names = {*recognise._PYTORCH, *recognise._HUGGING_FACE.values()} - set(ROWS)
    monkeypatch.setattr(recognise, "ROWS", {**ROWS, **{name: Row(name) for name in names}})
    for table in ("MODULES", "FUNCTIONS", "METHODS"):
        monkeypatch.setattr(recognise, table, {})
    recognise.refresh()


def arguments(name):
    names = recognise._PYTORCH[name][1]
    return {each: VALUES.get(each, 0.4) for each in names}


@pytest.mark.parametrize("name", recognise._PYTORCH)
def test_modules_and_functions(rows, name):
    cls, _ = recognise._PYTORCH[name]
    given = arguments(name)
    module = cls(**given)
    found = recognise.activation(module, (X,), {})
    assert (found.row.name, found.parameters, found.inplace) == (name, tuple(given.values()), False)
    function = getattr(F, name)
    for args, kwargs in (((X, *given.values()), {}), ((X,), given), ((), {"input": X, **given})):
        function(*args, **kwargs)
        assert recognise.activation(function, args, kwargs)[:3] == found[:3]
    if hasattr(module, "inplace"):
        assert recognise.activation(cls(**given, inplace=True), (X,), {}).inplace
        assert recognise.activation(function, (X, *given.values(), True), {}).inplace
        assert recognise.activation(function, (X,), {**given, "inplace": True}).inplace
    assert recognise.activation(type("Own", (cls,), {})(**given), (X,), {}) is None
    assert recognise.activation(module, (X, X), {}) is None
    for each in given:
        setattr(module, each, math.nan)
        assert recognise.activation(module, (X,), {}) is None
        setattr(module, each, torch.tensor(0.3))
        assert recognise.activation(module, (X,), {}) is None


def test_other_spellings(rows):
    for function in (
        torch.relu,
        torch.relu_,
        F.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
        "relu",
        "relu_",
    ):
        found = recognise.activation(function, (X,), {})
        assert found.row.name == "relu"
        assert found.inplace == (getattr(function, "__name__", function)[-1] == "_")
    assert recognise.activation(nn.GELU(approximate="tanh"), (X,), {}).row.name == "gelu_tanh"
    assert recognise.activation(F.gelu, (X,), {"approximate": "tanh"}).row.name == "gelu_tanh"
    for other in (torch.softmax, F.prelu, nn.PReLU(), len, lambda x: x, "numpy"):
        assert recognise.activation(other, (X,), {}) is None
    assert recognise.activation(F.relu, (X, False, 1), {}) is None
    assert recognise.activation(F.leaky_relu, (X,), {"slope": 1.0}) is None


@pytest.mark.parametrize(
    ("call", "p"),
    [
        (lambda: (F.dropout, (X,), {}), 0.5),
        (lambda: (F.dropout, (X, 0.2, True), {}), 0.2),
        (lambda: (F.dropout, (X, 0.2, False), {}), 0.0),
        (lambda: (F.dropout, (), {"input": X, "p": 0.2, "training": True}), 0.2),
        (lambda: (torch.dropout, (X, 0.2, True), {}), 0.2),
        (lambda: (torch.dropout, (X,), {"p": 0.2, "train": False}), 0.0),
        (lambda: (nn.Dropout(0.2), (X,), {}), 0.2),
        (lambda: (nn.Dropout(0.2).eval(), (X,), {}), 0.0),
        (lambda: (F.dropout, (X, torch.tensor(0.2)), {}), None),
        (lambda: (F.dropout, (X, 0.2, 1), {}), None),
        (lambda: (F.dropout2d, (X,), {}), None),
        (lambda: (nn.Dropout2d(), (X,), {}), None),
        (lambda: (nn.AlphaDropout(), (X,), {}), None),
    ],
)
def test_dropouts(call, p):
    assert recognise.dropout(*call()) == p


def test_hugging_face(rows):
    """Each class computes what its row's name says; the others of that file aren't taken for anything."""
    path = "transformers.activations"
    activations = pytest.importorskip(path, reason="needs transformers: the extra `test`")
    truth = {
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "silu": F.silu,
        "mish": F.mish,
        "squared_relu": lambda x: F.relu(x).square(),
    }
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    seen = set()
    for name, made in activations.ACT2CLS.items():
        cls, kwargs = made if isinstance(made, tuple) else (made, {})
        module = cls(**kwargs)
        found = recognise.activation(module, (x,), {})
        if cls.__module__ != "transformers.activations":
            continue
        if cls.__name__ not in recognise._HUGGING_FACE:
            assert found is None, name
            continue
        seen.add(cls.__name__)
        torch.testing.assert_close(module(x), truth[found.row.name](x), rtol=0, atol=1e-9)
        module.register_forward_hook(lambda *_: None)
        assert recognise.activation(module, (x,), {}) is None
    assert seen >= set(recognise._HUGGING_FACE) - {"PytorchGELUTanh", "SiLUActivation"}
    changed = activations.GELUActivation()
    changed.act = torch.tanh
    assert recognise.activation(changed, (x,), {}) is None


def test_widened_by_autocast(rows):
    """Under autocast these return float32, which a kernel for halves would not."""
    found = recognise.activation(nn.Softplus(), (X,), {})
    assert found.widens
    assert not recognise.activation(nn.SiLU(), (X,), {}).widens


def test_takes():
    found = recognise.activation(nn.ReLU(), (X,), {})
    for x in (X, X.to("meta"), X.to(torch.int32), X.to_sparse(), None, [X]):
        assert not recognise.takes(x, found)

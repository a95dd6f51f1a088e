"""Which calls are activations and dropouts, by PyTorch's spellings and Hugging Face's classes."""

import math

import pytest
import torch
import torch.nn.functional as F
from compare import X
from torch import nn

from fusedact import rows
from fusedact.activations import own_rows
from fusedact.fusion import recognise

VALUES = {"threshold": 0.1, "value": -0.2, "min_val": -0.5, "max_val": 0.7, "beta": 2.0, "lambd": 0.3}
ROWS_OF_PYTORCH = [row for row in own_rows() if row.module is not None and row is not rows.IDENTITY]


@pytest.mark.parametrize("row", ROWS_OF_PYTORCH, ids=lambda row: row.name)
def test_modules_and_functions(row):
    given = {each.name: VALUES.get(each.name, 0.4) for each in row.parameters if each.choices is None}
    module = row.module(**given)
    found = recognise.activation(module, (X,), {})
    assert found == (row, tuple(given.values()))
    function = getattr(F, row.name)
    for args, kwargs in (((X, *given.values()), {}), ((X,), given), ((), {"input": X, **given})):
        function(*args, **kwargs)
        assert recognise.activation(function, args, kwargs) == found
    if hasattr(module, "inplace"):
        for call in (
            (row.module(**given, inplace=True), (X,), {}),
            (function, (X, *given.values(), True), {}),
            (function, (X,), {**given, "inplace": True}),
        ):
            assert recognise.activation(*call) is None
            assert recognise.activation(*call, recognise.NEW) == found
            assert recognise.activation(*call, nn.Linear(8, 8)) == found
    assert recognise.activation(type("Own", (row.module,), {})(**given), (X,), {}) is None
    assert recognise.activation(module, (X, X), {}) is None
    for each in given:
        module = row.module(**given)
        setattr(module, each, math.nan)
        assert recognise.activation(module, (X,), {}) is None
        setattr(module, each, torch.tensor(given[each]))
        assert recognise.activation(module, (X,), {}).values == pytest.approx(found.values)
        setattr(module, each, torch.tensor([0.3]))
        assert recognise.activation(module, (X,), {}) is None
        delattr(module, each)
        setattr(module, each, nn.Parameter(torch.tensor(0.3)))
        assert recognise.activation(module, (X,), {}) is None


def test_other_spellings():
    for function in (
        torch.relu,
        torch.relu_,
        F.relu_,
        torch.Tensor.relu,
        torch.Tensor.relu_,
        recognise.METHODS["relu"],
        recognise.METHODS["relu_"],
    ):
        assert recognise.activation(function, (X,), {}, recognise.NEW).row.name == "relu"
        inplace = getattr(function, "__name__", getattr(function, "name", ""))[-1] == "_"
        assert (recognise.activation(function, (X,), {}) is None) == inplace
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


def test_hugging_face():
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


def test_widened_by_autocast():
    """Under autocast the first returns float32, which its row doesn't; softplus's row does as well."""
    activations = pytest.importorskip("transformers.activations")
    modules = (activations.NewGELUActivation(), True), (activations.ReLUSquaredActivation(), False)
    for module, widens in (*modules, (nn.Softplus(), False), (nn.SiLU(), False)):
        assert recognise.activation(module, (X,), {}) is not None
        with torch.autocast("cpu"):
            assert (recognise.activation(module, (X,), {}) is None) == widens


def test_inputs_that_no_kernel_takes():
    found = recognise.activation(nn.ReLU(), (X,), {})
    for x in (X, X.to("meta"), X.to(torch.int32), X.to_sparse(), None, [X]):
        assert recognise.fused(found, x, 0.5, ()) is None

"""Rows of one's own: the docs' example works everywhere, and a wrong row is told what it lacks."""

import copy
import dataclasses
import importlib
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fusedact
from fusedact import Activation, Parameter, Saves, functional, rows
from fusedact.activations import _BY_MODULE, ROWS, of_module

PAGE = Path(__file__).parents[2] / "docs" / "own-activation.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The docs' code, as a module: Triton reads its file, and torch 2.11's compiler imports it by name."""
    path = tmp_path_factory.mktemp("own") / "star_relu.py"
    path.write_text(PAGE.read_text().partition("```python\n")[2].partition("```")[0])
    before = dict(ROWS), dict(_BY_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        yield vars(importlib.import_module(path.stem))
        del sys.modules[path.stem]
    for registry, rows_before in zip((ROWS, _BY_MODULE), before, strict=True):
        registry.clear()
        registry.update(rows_before)


@pytest.mark.usefixtures("device")
def test_the_example_passes_the_check(example):
    fusedact.testing.check_activation(example["STAR_RELU"], 0.8, -0.4)


RAISED = """
import torch, triton, triton.language as tl
from fusedact import Activation, Parameter, Saves

@triton.jit
def raised(x, a, b):
    return tl.where(x > 0, x, x * a) + 1.0

@triton.jit
def raised_passes(x, a, b):
    return x > 0

ROW = Activation(
    name="raised",
    function=lambda x, a: torch.where(x > 0, x, x * a) + 1,
    formula="leaky_relu(x) + 1",
    saves=Saves.TWO_BITS,
    parameters=(Parameter("a", 0.1),),
    forward=raised,
    backward=raised_passes,
)
"""


@pytest.mark.usefixtures("device")
def test_two_bits_may_keep_more_than_a_slope(tmp_path, monkeypatch):
    (tmp_path / "raised.py").write_text(RAISED)
    monkeypatch.syspath_prepend(tmp_path)
    fusedact.testing.check_activation(importlib.import_module("raised").ROW, 0.3)


def test_the_example_is_a_module_and_a_function(example):
    cls, row = example["FusedStarReLUDropout"], example["STAR_RELU"]
    layer = cls(0.3, s=0.7)
    assert repr(layer) == "FusedStarReLUDropout(p=0.3, s=0.7, b=-0.4472, inplace=False, rng='eager')"
    x = torch.randn(40)
    results = []
    for call in (layer, lambda x: example["star_relu_dropout"](x, 0.3, s=0.7)):
        torch.manual_seed(1)
        results.append(call(x))
    assert torch.equal(*results)
    assert torch.equal(layer.eval()(x), row.function(x, 0.7, -0.4472))
    assert of_module(example["StarReLU"](s=0.7)).values == (0.7, -0.4472)


def test_the_example_compiles(example):
    layer = example["FusedStarReLUDropout"](0.3)
    x = torch.randn(40)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"saves": Saves.MASK}, ValueError, "saves=Saves.MASK of the row 'mine': it is plain dropout's"),
        ({"module": nn.ReLU()}, TypeError, r"module=ReLU\(\) of the row 'mine': it must be a subclass of"),
        ({"from_output": torch.relu}, ValueError, "from_output=.* only the package's own rows may have it"),
        ({"slope": 2.0}, ValueError, r"slope=2\.0, vanishes=False of .*: they need Saves\.ONE_BIT"),
        ({"vanishes": True}, ValueError, r"slope=1\.0, vanishes=True of .*: they need Saves\.ONE_BIT"),
        ({"saves": Saves.ONE_BIT, "slope": "1"}, ValueError, "slope='1': it must be a finite number"),
        ({"representable": True}, ValueError, "representable=True of .*: it needs exact=True"),
        ({"dead": ((0.0, 1.0),)}, TypeError, r"dead=\(.*: it must be a function that takes beta, threshold"),
        ({"saturated": lambda a: ()}, TypeError, "saturated=.*: it must be a function that takes beta, thr"),
        (
            {"rule": lambda: None},
            TypeError,
            "rule=.* of the row 'mine': it must be a function that takes",
        ),
        (
            {"parameters": (Parameter("p", 0.1),)},
            ValueError,
            "the parameter 'p' of .* something else",
        ),
        ({"parameters": (Parameter("type", 0.1),)}, ValueError, "the parameter 'type' of .* choose"),
        ({"parameters": (Parameter("in", 0.1),)}, ValueError, "the parameter 'in' of .* no name of"),
        (
            {"parameters": (Parameter("s", 1.0),) * 2},
            ValueError,
            "the parameter 's' of .* something",
        ),
        (
            {"parameters": Parameter("s", 0.1)},
            TypeError,
            "parameters=.* must be a tuple of",
        ),
        ({"parameters": (("s", 0.1),)}, TypeError, r"parameters=.* for a single one, write \(Parameter"),
        ({"name": "relu"}, ValueError, "name='relu': another activation has it; choose a name"),
        ({"name": "my relu"}, ValueError, "name='my relu': it must be an identifier"),
        ({"name": 3}, ValueError, "name=3: it must be an identifier"),
        ({"module": nn.ReLU}, ValueError, "module=<class .*ReLU'>: the row 'relu' has it"),
        ({"forward": None}, TypeError, "forward=None: the row 'mine' needs it; give a @triton.jit function"),
        ({"backward": torch.relu}, TypeError, "backward=.*: the row 'mine' needs it; write it as a @triton"),
        ({"function": 3}, TypeError, "function=3: it must be callable"),
        ({"saves": "input"}, TypeError, r"saves='input': it must be one of Saves\.ONE_BIT, Saves"),
        (
            {"saves": Saves.TWO_BITS, "parameters": ()},
            ValueError,
            "saves two bits: its first parameter must be",
        ),
        (
            {"parameters": tuple(Parameter(n, 1.0) for n in "abc")},
            ValueError,
            "at most 2, but got 3",
        ),
    ],
)
def test_a_wrong_row_is_told_what_it_lacks(change, error, match):
    triton = pytest.importorskip("triton")

    @triton.jit
    def forward(x, a, b):
        return x

    right = Activation(
        name="mine",
        function=torch.relu,
        formula="x",
        saves=Saves.INPUT,
        parameters=rows.SOFTPLUS.parameters,
        forward=forward,
        backward=forward,
    )
    before = dict(ROWS)
    with pytest.raises(error, match=match):
        fusedact.register_activation(dataclasses.replace(right, **change))
    assert before == ROWS


def test_functions_with_other_arguments_are_told():
    triton = pytest.importorskip("triton")

    @triton.jit
    def forward(x):
        return x

    row = Activation(
        name="mine", function=torch.relu, formula="x", saves=Saves.INPUT, forward=forward, backward=forward
    )
    with pytest.raises(TypeError, match=r"forward of the row 'mine' must take \(x, a, b\), but takes \(x\)"):
        fusedact.register_activation(row)
    with pytest.raises(TypeError, match=r"row must be a fusedact\.Activation, but got str"):
        fusedact.register_activation("relu")


def test_what_is_no_registered_row_is_told():
    """A compiler and a file know a row by its name, which may be another's."""
    unregistered = dataclasses.replace(rows.RELU, function=torch.sigmoid)
    for row, error, match in (
        ("relu", TypeError, r"row must be a fusedact\.Activation, but got str"),
        (unregistered, ValueError, "the row 'relu' isn't registered; give it to register_activation"),
    ):
        with pytest.raises(error, match=match):
            fusedact.fused_function(row)
        with pytest.raises(error, match=match):
            type("Mine", (fusedact.FusedActivationDropout,), {}, row=row)


def test_a_module_without_a_row_is_an_error():
    with pytest.raises(TypeError, match="FusedActivationDropout has no row"):
        fusedact.FusedActivationDropout()


def test_modules_pickle_by_name():
    assert type(pickle.loads(pickle.dumps(fusedact.FusedDropout()))) is fusedact.FusedDropout
    assert functional.dropout.__name__ == "dropout"


def test_a_row_is_the_only_one_of_its_name():
    for row in ROWS.values():
        assert pickle.loads(pickle.dumps(row)) is copy.deepcopy(row) is row

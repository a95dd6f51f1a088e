"""The modules and functions as a user meets them, on a CPU: eager's bits, and clear errors."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch
from cases import ACTIVATIONS, DTYPES, MODULES, activations, function, parameters
from torch import nn

import fusedact
from fusedact import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout
from fusedact.activations import ROWS


def test_two_activations_have_two_names():
    with pytest.raises(ValueError, match="name has to be no other activation's, but got name='relu'"):
        dataclasses.replace(ACTIVATIONS[0])
    assert ROWS["relu"] is ACTIVATIONS[0]


def test_every_activation_has_its_module():
    exported = {vars(fusedact)[name] for name in fusedact.__all__ if name.startswith("Fused")}
    assert MODULES.keys() == {activation.name for activation in ACTIVATIONS}
    assert set(MODULES.values()) == exported


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_equals_the_two_modules_bit_for_bit(activation, dtype, p, training, inplace):
    fused = MODULES[activation.name](p, *parameters(activation), inplace).train(training)
    pair = nn.Sequential(activation.module(*parameters(activation)), nn.Dropout(p)).train(training)
    results = []
    for module in (pair, fused):
        torch.manual_seed(1)
        x = torch.randn(30, 20, dtype=dtype, requires_grad=True)
        middle = x * 1.0
        y = module(middle)
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        results.append((y, dx, torch.get_rng_state()))
        if module is fused and inplace:
            assert y.data_ptr() == middle.data_ptr()
    for expected, result in zip(*results, strict=True):
        assert torch.equal(expected, result)


@activations
def test_any_shape(activation):
    module = MODULES[activation.name]()
    for shape in [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5)]:
        x = torch.randn(shape, requires_grad=True)
        y = module(x)
        assert y.shape == x.shape
        y.sum().backward()
        assert x.grad.shape == x.shape


@activations
def test_drops_after_the_activation_and_scales(activation):
    """With the seed's mask from nn.Dropout itself, so that the order of the two shows."""
    x = torch.randn(1000)
    torch.manual_seed(3)
    keep = nn.functional.dropout(torch.ones(1000), 0.25) != 0
    torch.manual_seed(3)
    y = function(activation)(x, 0.25, *parameters(activation))
    expected = activation.function(x, *parameters(activation)) * keep / 0.75
    torch.testing.assert_close(y, expected)


@activations
def test_signature(activation):
    """p first, then the activation's own name and default, then inplace; rng by keyword."""
    cls = MODULES[activation.name]
    names = ["p", activation.parameter, "inplace", "rng"]
    signature = inspect.signature(cls).parameters
    assert list(signature) == [name for name in names if name]
    assert signature["rng"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (signature["p"].default, signature["inplace"].default) == (0.5, False)
    if activation.parameter:
        theirs = inspect.signature(activation.module).parameters
        assert signature[activation.parameter].default == theirs[activation.parameter].default
    names = ["input", "p", activation.parameter, "training", "inplace", "rng"]
    assert list(inspect.signature(function(activation)).parameters) == [name for name in names if name]


def test_repr():
    assert repr(FusedReLUDropout()) == "FusedReLUDropout(p=0.5, inplace=False, rng='eager')"
    assert repr(FusedLeakyDropout(0.1, 0.2, True)) == (
        "FusedLeakyDropout(p=0.1, negative_slope=0.2, inplace=True, rng='eager')"
    )
    assert repr(FusedELUDropout(alpha=2)) == "FusedELUDropout(p=0.5, alpha=2.0, inplace=False, rng='eager')"


@activations
def test_copies_and_state(activation):
    module = MODULES[activation.name](0.2, *parameters(activation)).eval()
    assert module.state_dict() == {}
    assert list(module.parameters()) == []
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        assert not other.training
    assert module.train().training


BAD_P = [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True, torch.tensor(0.5)]
BAD_PARAMETER = [float("nan"), float("inf"), "0.1", None, True, 1j]


@activations
@pytest.mark.parametrize("p", BAD_P, ids=repr)
def test_bad_p(activation, p):
    match = r"dropout probability has to be a number between 0 and 1, but got p="
    with pytest.raises(ValueError, match=match):
        MODULES[activation.name](p)
    with pytest.raises(ValueError, match=match):
        function(activation)(torch.ones(3), p)


@activations
@pytest.mark.parametrize("value", BAD_PARAMETER, ids=repr)
def test_bad_parameter(activation, value):
    if activation.parameter is None:
        pytest.skip(f"{activation.name} has no parameter")
    match = f"{activation.parameter} has to be a finite number, but got {activation.parameter}="
    with pytest.raises(ValueError, match=match):
        MODULES[activation.name](0.5, value)
    with pytest.raises(ValueError, match=match):
        function(activation)(torch.ones(3), 0.5, value)


@activations
@pytest.mark.parametrize(
    ("input", "match"),
    [
        ([1.0], "input has to be a torch.Tensor, but got list"),
        (1.0, "input has to be a torch.Tensor, but got float"),
        (torch.ones(3, dtype=torch.int64), r"input has to have one of the dtypes .* but got torch.int64"),
        (torch.ones(3, dtype=torch.bool), r"but got torch.bool"),
        (torch.ones(3, dtype=torch.complex64), r"but got torch.complex64"),
        (torch.ones(3).to_sparse(), r"input has to be a dense tensor .* but got torch.sparse_coo"),
    ],
    ids=["list", "float", "int64", "bool", "complex64", "sparse"],
)
def test_bad_input(activation, input, match):
    with pytest.raises(TypeError, match=match):
        MODULES[activation.name]()(input)


@activations
def test_bad_flags(activation):
    with pytest.raises(ValueError, match=r"rng has to be 'eager'.* but got rng='fats'"):
        MODULES[activation.name](rng="fats")
    with pytest.raises(ValueError, match="but got rng=None"):
        function(activation)(torch.ones(3), rng=None)
    with pytest.raises(TypeError, match=r"inplace has to be True or False, but got inplace=0\.2"):
        MODULES[activation.name](0.5, *parameters(activation), 0.2)
    with pytest.raises(TypeError, match="training has to be True or False, but got training=1"):
        function(activation)(torch.ones(3), training=1)


@activations
def test_a_changed_probability_counts(activation):
    """As with nn.Dropout, p may change during training."""
    module = MODULES[activation.name](0.5)
    module.p = 0.0
    assert torch.equal(module(torch.ones(100)), torch.ones(100))
    module.p = 2
    with pytest.raises(ValueError, match="but got p=2"):
        module(torch.ones(100))


@activations
def test_transformed_calls_take_the_composition(activation):
    """torch.func sees through it: the composition's own derivative rules apply."""
    x = torch.randn(50)
    module = MODULES[activation.name](0.0, *parameters(activation))
    gradient = torch.func.grad(lambda x: module(x).sum())(x)
    tangent = torch.func.jvp(module, (x,), (torch.ones(50),))[1]
    assert torch.equal(gradient, tangent)
    assert gradient.abs().sum() > 0
    masks = torch.func.vmap(MODULES[activation.name](0.5), randomness="different")(torch.ones(4, 100))
    assert len({tuple(row.tolist()) for row in masks}) == 4

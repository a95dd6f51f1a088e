"""Every activation's module and function as a user meets them, on a CPU: eager's bits, and clear errors."""

import copy
import inspect
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, EVERY, activations, eager_modules, fused_module, public, values
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import fusedact
from fusedact import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout, rows
from fusedact.activations import REQUIRED, own_rows


def module(activation, p=0.5, **options):
    found = public(activation)
    return found.module(p, **{**found.arguments, **options})


def function(activation, x, *positional, **options):
    found = public(activation)
    return found.function(x, *positional, **{**found.arguments, **options})


def test_every_row_has_a_module_and_a_function_that_are_exported():
    modules = {public(row).module.__name__ for row in EVERY}
    exported = {name for name in fusedact.__all__ if name.startswith("Fused")}
    assert exported == modules | {"FusedActivationDropout", "FusedLeakyReLUDropout"}
    assert len(modules) == len(own_rows())
    assert fusedact.FusedLeakyReLUDropout is FusedLeakyDropout


EMPTY = inspect.Parameter.empty
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2),
    "sliced": lambda x: torch.cat([x, x], 2)[..., ::2],
    "expanded": lambda x: x[:, :1].expand(x.shape),
}


@activations
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [True, False])
def test_equals_the_two_modules_bit_for_bit(activation, dtype, inplace):
    for layout in LAYOUTS.values():
        for p, training in ((0, True), (0.3, True), (1, True), (0.3, False)):
            pair = eager_modules(activation, p).train(training)
            fused = module(activation, p, inplace=inplace).train(training)
            results = []
            for call in (pair, fused):
                torch.manual_seed(1)
                x = layout(torch.randn(4, 5, 6, dtype=dtype)).detach().requires_grad_()
                middle = x * 1.0
                y = call(middle)
                if call is fused and inplace:
                    assert y.data_ptr() == middle.data_ptr()
                (dx,) = torch.autograd.grad(y, x, torch.randn(y.shape, dtype=dtype))
                results.append((y, dx, torch.get_rng_state()))
            for expected, result in zip(*results, strict=True):
                torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@activations
def test_the_function_is_the_module(activation):
    x = torch.randn(50)
    results = []
    for call in (module(activation, 0.3), lambda x: function(activation, x, 0.3)):
        torch.manual_seed(2)
        results.append(call(x))
    assert torch.equal(*results)


@activations
def test_any_shape(activation):
    for shape in [(), (0,), (3, 0, 2), (1,), (2, 3, 4, 5)]:
        x = torch.randn(shape, requires_grad=True)
        y = module(activation)(x)
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
    y = function(activation, x, 0.25)
    torch.testing.assert_close(y, activation.function(x, *values(activation)) * keep / 0.75)


@activations
def test_signature(activation):
    """PyTorch's own order; an activation's parameters by keyword alone, as PyTorch names them."""
    found = public(activation)
    own = list(found.arguments)
    for made, first in (
        (found.module, {"p": 0.5, "inplace": False}),
        (found.function, {"input": EMPTY, "p": 0.5, "training": True, "inplace": False}),
    ):
        signature = inspect.signature(made).parameters
        assert list(signature) == [*first, *own, "rng"]
        assert {name: signature[name].default for name in first} == first
        assert all(signature[name].kind is inspect.Parameter.KEYWORD_ONLY for name in (*own, "rng"))
        if found.activation is not None:
            theirs = inspect.signature(type(found.activation())).parameters
            assert {n: signature[n].default for n in own} == {n: theirs[n].default for n in own}


@activations
def test_documentation(activation):
    """Every argument is described, once, and the formula is there."""
    found = public(activation)
    for documented in (found.module, found.function):
        text = documented.__doc__
        for name in inspect.signature(documented).parameters:
            assert text.count(f"    {name}: ") == 1
        assert found.module.row.formula in text
        assert {"Args:", "Raises:"} <= set(map(str.strip, text.splitlines()))


def test_repr():
    assert repr(FusedReLUDropout()) == "FusedReLUDropout(p=0.5, inplace=False, rng='eager')"
    assert repr(FusedLeakyDropout(0.1, True, negative_slope=0.2)) == (
        "FusedLeakyDropout(p=0.1, negative_slope=0.2, inplace=True, rng='eager')"
    )
    assert repr(FusedELUDropout(alpha=2)) == "FusedELUDropout(p=0.5, alpha=2, inplace=False, rng='eager')"


@activations
def test_copies_and_state(activation):
    one = module(activation, 0.2).eval()
    assert one.state_dict() == {}
    assert list(one.parameters()) == []
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert repr(other) == repr(one)
        assert not other.training
    assert one.train().training


def test_a_subclass_has_a_constructor_of_its_own():
    class Gentle(FusedELUDropout):
        def __init__(self, width):
            super().__init__(0.1, alpha=2.0)
            self.width = width

    layer = Gentle(7)
    assert (layer.p, layer.alpha, layer.width) == (0.1, 2.0, 7)
    assert list(inspect.signature(Gentle).parameters) == ["width"]
    assert layer.eval()(torch.tensor(-1e9)) == -2


def test_a_class_with_a_row_and_a_constructor_keeps_it():
    class Gentle(fusedact.FusedActivationDropout, row=rows.ELU):
        def __init__(self, width):
            super().__init__(0.1, alpha=2.0)
            self.width = width

    layer = Gentle(7)
    assert (layer.p, layer.alpha, layer.width) == (0.1, 2.0, 7)


BAD_P = [
    -0.1,
    1.1,
    float("nan"),
    float("inf"),
    "0.5",
    None,
    True,
    10**400,
    torch.tensor([0.5]),
    torch.tensor(1.5),
]
BAD_NUMBER = [float("nan"), float("inf"), "0.1", None, True, 10**400, 1j, torch.ones(()).requires_grad_()]


@activations
@pytest.mark.parametrize("p", BAD_P, ids=lambda p: repr(p)[:20])
def test_bad_p(activation, p):
    match = r"p=.*: the dropout probability must be a number between 0 and 1"
    with pytest.raises(ValueError, match=match):
        module(activation, p)
    with pytest.raises(ValueError, match=match):
        function(activation, torch.ones(3), p)


@pytest.mark.parametrize("value", BAD_NUMBER, ids=lambda value: repr(value)[:20])
def test_bad_numbers(value):
    for activation in EVERY:
        for parameter in activation.parameters:
            if parameter.choices is None:
                for call in (module, lambda row, **o: function(row, torch.ones(3), **o)):
                    with pytest.raises(ValueError, match=f"{parameter.name}=.*: it must be a finite number"):
                        call(activation, **{parameter.name: value})


@pytest.mark.parametrize(
    ("cls", "given", "match"),
    [
        ("FusedHardtanhDropout", {"min_val": 1}, "min_val=1, max_val=1.0: max_val must be greater than"),
        ("FusedSoftshrinkDropout", {"lambd": -1.0}, r"lambd=-1\.0: lambd must be at least 0"),
        ("FusedCELUDropout", {"alpha": 0}, "alpha=0: alpha must not be 0"),
        ("FusedSoftplusDropout", {"beta": 0.0}, r"beta=0\.0, threshold=20\.0: beta must not be 0"),
        ("FusedGELUDropout", {"approximate": "tan"}, "approximate='tan': it must be 'none' or 'tanh'"),
        ("FusedGELUDropout", {"approximate": 1}, "approximate=1: it must be 'none' or 'tanh'"),
    ],
)
def test_values_that_a_rule_forbids(cls, given, match):
    with pytest.raises(ValueError, match=match):
        getattr(fusedact, cls)(**given)


@activations
def test_arguments_that_are_not_there(activation):
    by_position = (["p", "inplace"], ["input", "p", "training", "inplace"])
    calls = (module, lambda row, **o: function(row, torch.ones(3), **o))
    for call, first in zip(calls, by_position, strict=True):
        takes = ", ".join([*first, *public(activation).arguments, "rng"])
        with pytest.raises(TypeError, match=f"unexpected argument 'slope'; it takes {takes}"):
            call(activation, slope=0.1)
    required = [p for p in activation.parameters if p.default is REQUIRED]
    if required:
        with pytest.raises(TypeError, match=f"FusedThresholdDropout needs the argument {required[0].name}"):
            public(activation).module()


def test_a_slope_by_position_is_an_error():
    """It would be taken for p, and p for the training flag."""
    with pytest.raises(TypeError, match=r"training=0\.5: it must be True or False"):
        fusedact.functional.leaky_relu_dropout(torch.ones(3), 0.01, 0.5)
    with pytest.raises(TypeError, match=r"inplace=0\.2: it must be True or False"):
        FusedLeakyDropout(0.5, 0.2)


@activations
@pytest.mark.parametrize(
    ("input", "match"),
    [
        ([1.0], "input must be a torch.Tensor, but got list"),
        (1.0, "input must be a torch.Tensor, but got float"),
        (torch.ones(3, dtype=torch.int64), r"input must have one of the dtypes .* but got torch.int64"),
        (torch.ones(3, dtype=torch.bool), r"but got torch.bool"),
        (torch.ones(3, dtype=torch.complex64), r"but got torch.complex64"),
        (torch.ones(3).to_sparse(), r"input must be a dense tensor .* but got torch.sparse_coo"),
    ],
    ids=["list", "float", "int64", "bool", "complex64", "sparse"],
)
def test_bad_input(activation, input, match):
    with pytest.raises(TypeError, match=match):
        module(activation)(input)


@activations
def test_bad_flags(activation):
    with pytest.raises(ValueError, match=r"rng='fats': it must be 'eager' or 'fast'"):
        module(activation, rng="fats")
    for value in (None, ["eager"]):
        with pytest.raises(ValueError, match=f"rng={re.escape(repr(value))}: "):
            function(activation, torch.ones(3), rng=value)
    with pytest.raises(TypeError, match=r"inplace=0\.2: it must be True or False"):
        module(activation, inplace=0.2)
    with pytest.raises(TypeError, match="training=1: it must be True or False"):
        function(activation, torch.ones(3), training=1)


def test_numbers_of_other_kinds_are_taken():
    """As PyTorch takes them: NumPy's, and tensors of no dimension that need no gradient."""
    x = torch.linspace(-2, 2, 64)
    for half in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float16)):
        torch.manual_seed(1)
        expected = FusedLeakyDropout(0.5, negative_slope=0.5)(x)
        torch.manual_seed(1)
        assert torch.equal(FusedLeakyDropout(half, negative_slope=half)(x), expected)
        torch.manual_seed(1)
        assert torch.equal(fusedact.functional.leaky_relu_dropout(x, half, negative_slope=half), expected)
    relu = fusedact.functional.relu_dropout
    assert torch.equal(relu(x, training=np.bool_(False)), x.relu())
    y = x.clone()
    assert relu(y, inplace=np.bool_(True)) is y
    assert FusedReLUDropout(inplace=np.bool_(False)).inplace is False


@activations
def test_a_changed_probability_counts(activation):
    """As with nn.Dropout, p may change during training."""
    one = module(activation, 0.5)
    one.p = 0.0
    x = torch.ones(100)
    assert torch.equal(one(x), activation.function(x, *values(activation)))
    one.p = 2
    with pytest.raises(ValueError, match="p=2: "):
        one(x)


@activations
def test_a_changed_parameter_counts(activation):
    one, x = module(activation).eval(), torch.linspace(-4, 4, 200)
    for parameter in activation.parameters:
        if parameter.choices is None:
            before = one(x)
            setattr(one, parameter.name, getattr(one, parameter.name) * 2)
            assert not torch.equal(one(x), before)
            setattr(one, parameter.name, "high")
            with pytest.raises(ValueError, match=f"{parameter.name}='high'"):
                one(x)
            setattr(one, parameter.name, 0.3)


def test_a_parameter_that_is_changed_in_its_place_counts():
    slope, x = torch.tensor(0.1), torch.linspace(-4, 4, 200)
    one = FusedLeakyDropout(negative_slope=slope).eval()
    assert torch.equal(one(x), F.leaky_relu(x, 0.1))
    slope.fill_(0.5)
    assert torch.equal(one(x), F.leaky_relu(x, 0.5))


def test_other_layers_parameters_cause_no_recompilation():
    x = torch.linspace(-4, 4, 200)
    compiled = torch.compile(FusedLeakyDropout(negative_slope=0.1).eval(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.leaky_relu(x, 0.1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        FusedLeakyDropout(negative_slope=0.2)(x)
        assert torch.equal(compiled(x), F.leaky_relu(x, 0.1))


@activations
def test_transformed_calls_take_the_composition(activation):
    """torch.func sees through it: the composition's own derivative rules apply."""
    x = torch.randn(50)
    one = module(activation, 0.0)
    gradient = torch.func.grad(lambda x: one(x).sum())(x)
    tangent = torch.func.jvp(one, (x,), (torch.ones(50),))[1]
    torch.testing.assert_close(gradient, tangent)
    assert gradient.abs().sum() > 0
    masks = torch.func.vmap(module(activation, 0.5), randomness="different")(torch.ones(4, 100))
    if activation.function(torch.ones(1), *values(activation)) != 0:
        assert len({tuple(row.tolist()) for row in masks}) == 4


def test_fused_module_cases_have_no_default_parameter():
    """So that the other tests notice a parameter that is ignored."""
    for activation in EVERY:
        layer = fused_module(activation)
        for parameter in activation.parameters:
            if parameter.choices is None:
                assert getattr(layer, parameter.name) != parameter.default


def test_a_trace_with_symbolic_sizes():
    """Within functorch's transforms a plain tensor has a symbolic number of elements."""
    layer = FusedReLUDropout(0.0)
    graph = make_fx(torch.func.grad(lambda x: layer(x).sum()), tracing_mode="symbolic")(torch.randn(8, 4))
    assert torch.equal(graph(torch.ones(6, 4)), torch.ones(6, 4))

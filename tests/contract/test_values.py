"""Every activation's kernels against its PyTorch function, by the check for rows of one's own."""

import dataclasses

import pytest
import torch
from cases import DTYPES, EVERY, activations, fused, public

from fusedact import rows
from fusedact.activations import own_rows
from fusedact.kernels import mathematics
from fusedact.testing import check_activation

# Where eager PyTorch has float32's accuracy in float64 too: on a GPU it multiplies by float32's sixth, which
# the kernels do and a CPU doesn't; CELU's gradient divides by a float32 alpha.
ROUGH = (rows.HARDSIGMOID, rows.HARDSWISH, rows.CELU)


@activations
@pytest.mark.usefixtures("device")
def test_kernels_compute_the_function(activation):
    dtypes = DTYPES[:3] if activation in ROUGH else DTYPES
    if activation in own_rows():
        check_activation(activation, *public(activation).arguments.values(), dtypes=dtypes)
    else:
        check_activation(activation, dtypes=dtypes)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"forward": mathematics.relu6}, r"relu, torch\.float16, rng='eager', forward: .* the first is x="),
        (
            {"backward": mathematics.relu6_passes, "vanishes": False},
            r"relu, torch\.float16, rng='eager', backward: ",
        ),
        ({"function": torch.sigmoid}, "forward: "),
        ({"slope": 0.5}, "backward: "),
    ],
)
def test_the_check_can_fail(change, match):
    with pytest.raises(AssertionError, match=match):
        check_activation(dataclasses.replace(rows.RELU, **change))


def test_the_check_says_where_it_can_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no CUDA device: set TRITON_INTERPRET=1"):
        check_activation(rows.RELU)


@activations
@pytest.mark.parametrize("inplace", [False, True])
def test_gradcheck(activation, inplace, device):
    x = torch.linspace(-2.9, 2.9, 60, device=device, dtype=torch.float64)
    # Away from the kinks, where finite differences are wrong.
    kinks = torch.tensor([0.0, -0.7, 1.3, 0.4, -0.4, 0.2], dtype=x.dtype, device=device)
    x = x[(x.unsqueeze(1) - kinks).abs().amin(1) > 1e-3].requires_grad_()

    def function(x):
        return fused(activation, x * 1.0 if inplace else x, 0.3, inplace)

    # The Jacobian along random directions: its every column takes minutes in the interpreter.
    assert torch.autograd.gradcheck(function, x, fast_mode=True, atol=1e-4 if activation in ROUGH else 1e-5)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


def test_the_check_needs_every_parameter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for row, given in ((rows.SOFTPLUS, (1.0,)), (rows.RELU, (1.0,)), (rows.LEAKY_RELU, ())):
        with pytest.raises(TypeError, match=f"the row '{row.name}' takes .*, but {len(given)} values were"):
            check_activation(row, *given)
    with pytest.raises(TypeError, match=r"row must be a fusedact\.Activation, but got str"):
        check_activation("relu")


def test_rounded_parameters_need_no_default_device():
    with torch.device("meta"):
        assert rows.HARDSHRINK.values_in((0.1,), torch.bfloat16) == (0.10009765625,)


def test_every_row_has_its_functions():
    """By name, or its own; what is not asked for is not there."""
    names = set(vars(mathematics))
    for row in EVERY:
        assert row.name in names

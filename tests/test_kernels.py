"""The kernels themselves against the exact oracle: every activation, dtype, layout and size."""

import pytest
import torch
from cases import (
    ACTIVATIONS,
    DTYPES,
    OFFSET,
    PROCESSORS,
    SEED,
    SIZES,
    assert_equals_eager,
    fused,
    make_draw,
    mask,
    parameters,
    steps,
)

from fusedact import ops, random, reference
from fusedact.activations import Saved

pytestmark = pytest.mark.usefixtures("poisoned")

activations = pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])


def check(activation, x, dy, p, dense=None):
    """One call both ways; `dense` is x in the layout that its output has, where it isn't x's own."""
    x = x.detach().requires_grad_()
    dense = x.detach() if dense is None else dense
    keep = mask(dense, p)
    y = fused(activation, x, p)
    assert y.stride() == dense.stride()
    assert y.dtype == x.dtype
    values = reference.forward(activation, dense, parameters(activation), p, keep)
    truth = reference.forward(activation, dense.double(), parameters(activation), p, keep)
    assert_equals_eager(activation, y, values, truth)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx.shape == x.shape
    gradients = reference.backward(activation, dense, parameters(activation), p, keep, dy)
    truth = reference.backward(activation, dense.double(), parameters(activation), p, keep, dy.double())
    assert_equals_eager(activation, dx, gradients, truth)


@activations
@dtypes
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients(activation, dtype, n, device):
    x, dy = torch.randn(2, n, device=device).mul_(2).to(dtype)
    check(activation, x, dy, 0.3)


@activations
@pytest.mark.parametrize("p", [0.001, 0.1, 0.15, 0.5, 0.9, 0.99, 1e-12, 1 - 1e-12])
def test_probabilities(activation, p, device):
    x, dy = torch.randn(2, 5000, device=device)
    check(activation, x, dy, p)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2],
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "negated": lambda x: torch._neg_view(-x),
    "0-d": lambda x: x[0, 0, 0, 0],
}


@activations
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(3, 8, 10, 12), (3, 5, 7, 9)], ids=["even", "odd"])
def test_layouts_of_the_input(activation, layout, dtype, shape, device):
    x = LAYOUTS[layout](torch.randn(shape, device=device).to(dtype))
    # What eager's activation returns: the layout that dropout then sees.
    dense = torch.relu(x).copy_(x)
    check(activation, x, torch.randn_like(dense), 0.3, dense)


@activations
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_upstream_gradient(activation, layout, device):
    dy = LAYOUTS[layout](torch.randn(3, 8, 10, 12, device=device))
    check(activation, torch.randn(dy.shape, device=device), dy, 0.3)


@activations
@dtypes
def test_special_values(activation, dtype, device):
    """Every special value, kept and dropped, under every special gradient."""
    info = torch.finfo(dtype)
    special = [0.0, info.smallest_normal / 4, info.smallest_normal, 1e-3, 1.0, info.max, torch.inf]
    values = torch.tensor([*special, *(-v for v in special), torch.nan], dtype=dtype, device=device)
    x, dy = torch.cartesian_prod(values, values).repeat(16, 1).t().contiguous()
    if activation.saved is Saved.ALIVE:
        # The documented exception: the one bit of a dropped positive element says "dead", whose
        # gradient is 0 where eager has inf * 0.
        dy[~torch.isfinite(dy)] = 1.0
    if activation.saved is Saved.INPUT and dtype is torch.float64:
        # Eager scales first and overflows where the product needn't; the truth here is eager's.
        dy[dy.abs() == info.max] /= 4
    check(activation, x, dy, 0.5)


def elu_inputs(dtype):
    """Every value of a half-precision type; of the others, down to 1e-30 and over the whole range."""
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    near = -torch.logspace(-30, 1.9, 30_000, dtype=torch.float64)
    return torch.cat([near, torch.randn(35_536, dtype=torch.float64) * 3]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_elu_is_no_less_accurate_than_eager(dtype, p, device):
    """The largest error against a float64 truth, both ways.

    In half precision it is at most eager's. In float32, where eager's exp on a CPU is within 0.6 of a
    unit in the last place and a GPU's within 1 or 2, half a unit more is allowed.
    """
    (elu,) = (a for a in ACTIVATIONS if a.saved is Saved.INPUT)
    x = elu_inputs(dtype).to(device).requires_grad_()
    dy = torch.ones_like(x)
    keep = mask(x.detach(), p)
    y = fused(elu, x, p)
    (dx,) = torch.autograd.grad(y, x, dy)
    x = x.detach()
    for value, function, arguments in ((y, reference.forward, ()), (dx, reference.backward, (dy,))):
        eager = function(elu, x, parameters(elu), p, keep, *arguments)
        truth = function(elu, x.double(), parameters(elu), p, keep, *(a.double() for a in arguments))
        ordinary = torch.isfinite(truth) & torch.isfinite(eager)
        errors = [steps(v, truth)[ordinary].max() for v in (value, eager)]
        assert errors[0] <= errors[1] + (0.5 if dtype is torch.float32 else 0)
        assert torch.equal(value.isnan(), truth.isnan())


@activations
@dtypes
def test_bytes_kept_for_backward(activation, dtype, device):
    """Counted where autograd asks for them, for a size that fills its tiles."""
    n = 2**15
    x = torch.randn(n, device=device, dtype=dtype, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        plan = random.eager_plan(n, dtype.itemsize, 132, 2048)
        ops.fused(activation, x, parameters(activation), 0.5, random.Draw(SEED, OFFSET, plan), False)
    bits = {Saved.ALIVE: n // 8, Saved.FLAG: n // 4, Saved.INPUT: n // 8}[activation.saved]
    bits += n * dtype.itemsize if activation.saved is Saved.INPUT else 0
    assert sum(t.numel() * t.element_size() for t in kept) == bits


@activations
@pytest.mark.parametrize("n", SIZES)
def test_packed_bits(activation, n, device, launch):
    x = torch.randn(n, device=device)
    draw = make_draw(x)
    bits = launch.empty_bits(activation, x, draw.plan)
    launch.forward(activation, x, torch.empty_like(x), bits, 0.3, 0.3, draw)
    keep = mask(x, 0.3)
    expected = {
        Saved.ALIVE: [keep & (x > 0)],
        Saved.FLAG: [keep, x > 0],
        Saved.INPUT: [keep],
    }[activation.saved]
    assert torch.equal(launch.unpack(bits, n, draw.plan), torch.stack(expected))


@activations
def test_in_place(activation, device):
    """The result stands in the input's buffer, whatever its strides, and backward is right."""
    for layout in ("contiguous", "transposed", "sliced"):
        leaf = LAYOUTS[layout](torch.randn(3, 8, 10, 12, device=device)).detach().requires_grad_()
        x = leaf * 1.0 if layout != "sliced" else LAYOUTS[layout](leaf.repeat(1, 1, 1, 1) * 1.0)
        expected = fused(activation, x, 0.3)
        (gradient,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
        y = fused(activation, x, 0.3, inplace=True)
        assert y.data_ptr() == x.data_ptr()
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), leaf)[0], gradient, rtol=0, atol=0)


@activations
def test_in_place_on_a_leaf_is_autograds_own_error(activation, device):
    x = torch.randn(100, device=device, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        fused(activation, x, 0.3, inplace=True)
    assert torch.equal(x.detach(), before)


def test_in_place_after_an_operation_that_saved_its_result_is_autograds_own_error(device):
    y = torch.randn(100, device=device, requires_grad=True).exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fused(ACTIVATIONS[0], y, 0.3, inplace=True).sum().backward()


@activations
def test_calls_and_iterations_draw_their_own_numbers(activation, device):
    """No block, iteration or call repeats another's mask."""
    x = torch.ones(40_000, device=device)
    y = torch.cat([fused(activation, x, 0.5), fused(activation, x, 0.5, offset=OFFSET + 40)])
    pieces = (y != 0).view(-1, 100)
    assert len({tuple(piece.tolist()) for piece in pieces}) == len(pieces)


@activations
@pytest.mark.parametrize("vec", [8, 1])
def test_positions_past_2_to_the_31(activation, vec, launch, monkeypatch):
    """One program far out in a tensor of 2**32 + elements, most of whose memory is never touched."""
    if torch.cuda.is_available():
        pytest.skip("picks one program of a grid, which only the interpreter can; test_cuda.py runs all")
    from triton.runtime import interpreter

    torch.use_deterministic_algorithms(False)  # no poison: it would touch all the memory
    far = 2**32
    n = far + 4096 + (1 if vec == 1 else 0)
    x = torch.empty(n, dtype=torch.float16)
    plan = random.eager_plan(n, x.element_size(), *PROCESSORS)
    assert plan.vec == vec
    iteration = far // (256 * plan.blocks * launch.lanes(vec))
    set_index = interpreter.interpreter_builder.set_grid_idx
    set_size = interpreter.interpreter_builder.set_grid_dim
    shifted = {
        "set_grid_idx": lambda i, j, k: set_index(i, j + iteration, k),
        "set_grid_dim": lambda i, j, k: set_size(i, j + iteration, k),
    }
    for name, function in shifted.items():
        monkeypatch.setattr(interpreter.interpreter_builder, name, function)
    programs, _, _ = launch.grid(n, plan)
    monkeypatch.setattr(launch, "grid", lambda n, plan: (programs, 1, 1))
    # Only the one iteration's elements are written: words far out, results near the end.
    y = torch.empty_like(x)
    bits = torch.empty((iteration + 1) * programs * 2 * 128, dtype=torch.int32)
    here = slice(far, far + 4096)
    x[here] = torch.randn(4096).half()
    y[here] = torch.nan
    launch.forward(activation, x, y, bits, 0.3, 0.3, random.Draw(SEED, OFFSET, plan))

    e = torch.arange(far, far + 4096)
    words = reference.eager_words(e, plan, SEED, OFFSET)
    keep = words < random.keep_threshold(0.3, False)
    expected = reference.forward(activation, x[here], parameters(activation), 0.3, keep)
    torch.testing.assert_close(y[here], expected, rtol=0, atol=2e-3)

    dx = torch.empty_like(x)
    dx[here] = torch.nan
    launch.backward(activation, x, x, bits, dx, 0.3, 0.3, plan)
    expected = reference.backward(activation, x[here], parameters(activation), 0.3, keep, x[here])
    torch.testing.assert_close(dx[here], expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("n", [40_000, 20_001])
def test_iterations_over_two_axes_of_the_grid(n, device, launch, monkeypatch):
    """As where more iterations are needed than one axis of a grid allows."""
    monkeypatch.setattr(launch, "_AXIS", 2)
    launch.grid.cache_clear()
    x, dy = torch.randn(2, n, device=device)
    try:
        assert launch.grid(n, make_draw(x).plan)[2] > 1
        check(ACTIVATIONS[1], x, dy, 0.3)
    finally:
        launch.grid.cache_clear()


@activations
def test_gradcheck(activation, device):
    x = torch.randn(3, 50, device=device, dtype=torch.float64)
    x = x[x.abs() > 1e-3].requires_grad_()  # away from the kink, where finite differences are wrong

    def function(x):
        return fused(activation, x, 0.3)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


@activations
def test_double_backward_equals_eager(activation, device):
    x = torch.randn(500, device=device, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(500, device=device, dtype=torch.float64, requires_grad=True)
    keep = mask(x.detach(), 0.3)
    composed = activation.eager(x, *parameters(activation)) * keep / (1 - 0.3)
    results = []
    for y in (fused(activation, x, 0.3), composed):
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        results.append(torch.autograd.grad((dx**2).sum(), (x, dy), allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*results)


@activations
def test_no_grad_and_no_input_gradient(activation, device):
    x = torch.randn(1000, device=device)
    keep = mask(x, 0.3)
    expected = reference.forward(activation, x, parameters(activation), 0.3, keep)
    for y in (fused(activation, x, 0.3), torch.no_grad()(fused)(activation, x.requires_grad_(), 0.3)):
        assert not y.requires_grad
        torch.testing.assert_close(y, expected)


def test_a_parameter_beyond_float32_is_an_error(device, launch):
    (elu,) = (a for a in ACTIVATIONS if a.saved is Saved.INPUT)
    x = torch.randn(10, device=device)
    with pytest.raises(ValueError, match=r"1e\+300 is too large for the tensor's arithmetic, float32"):
        ops.fused(elu, x, (1e300,), 0.3, make_draw(x), False)

"""The kernels themselves against the exact oracle: every kind of saving, dtype, layout and size."""

import itertools

import pytest
import torch
from cases import (
    ENGINE,
    LAYOUTS,
    OFFSET,
    PROCESSORS,
    SEED,
    SIZES,
    assert_equals_eager,
    bytes_kept,
    configured,
    dtypes,
    forward_bits,
    fused,
    make_plan,
    mask,
    representatives,
    rngs,
    values,
)

from fusedact import autograd, composition, dispatch, rows
from fusedact.activations import Saves
from fusedact.kernels import configuration as shapes
from fusedact.kernels import launch
from fusedact.masks import oracle
from fusedact.masks import plan as plans
from fusedact.masks.generator import PhiloxState

pytestmark = pytest.mark.usefixtures("poisoned")


def check(activation, x, dy, p, dense=None, rng="eager"):
    """One call both ways; `dense` is x in the layout that its output has, where it isn't x's own."""
    x = x.detach().requires_grad_()
    dense = x.detach() if dense is None else dense
    keep = mask(dense, p, rng=rng)
    y = fused(activation, x, p, rng=rng)
    assert y.stride() == dense.stride()
    assert y.dtype == x.dtype
    p = plans.used_probability(p, rng)
    expected = composition.forward(activation, dense, values(activation), p, keep, rng)
    truth = composition.forward(activation, dense.double(), values(activation), p, keep)
    assert_equals_eager(activation, y, expected, truth)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx.shape == x.shape
    gradients = composition.backward(activation, dense, values(activation), p, keep, dy, rng)
    truth = composition.backward(activation, dense.double(), values(activation), p, keep, dy.double())
    assert_equals_eager(activation, dx, gradients, truth)


@representatives
@rngs
@dtypes
@pytest.mark.parametrize("n", SIZES)
def test_values_and_gradients(activation, rng, dtype, n, device):
    if rng == "fast" and n not in (7, 1000, 8200):
        pytest.skip("fast has no loop: a size of each vec will do")
    x, dy = torch.randn(2, n, device=device).mul_(2).to(dtype)
    check(activation, x, dy, 0.3, rng=rng)


@representatives
@rngs
@pytest.mark.parametrize("p", [0.001, 0.1, 0.15, 0.5, 0.9, 0.99, 1e-12, 1 - 1e-12])
def test_probabilities(activation, rng, p, device):
    if plans.used_probability(p, rng) == 0:
        pytest.skip("fast rounds this p to 0, for which no kernel runs")
    x, dy = torch.randn(2, 5000, device=device)
    check(activation, x, dy, p, rng=rng)


@representatives
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "rng"),
    [(torch.float32, "eager"), (torch.bfloat16, "eager"), (torch.bfloat16, "fast")],
    ids=["float32", "bfloat16", "bfloat16-fast"],
)
@pytest.mark.parametrize("shape", [(3, 8, 10, 12), (3, 5, 7, 9)], ids=["even", "odd"])
def test_layouts_of_the_input(activation, layout, dtype, rng, shape, device):
    x = LAYOUTS[layout](torch.randn(shape, device=device).to(dtype))
    # What eager's activation returns: the layout that dropout then sees.
    dense = torch.relu(x).copy_(x)
    check(activation, x, torch.randn_like(dense), 0.3, dense, rng)


@representatives
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_upstream_gradient(activation, layout, device):
    dy = LAYOUTS[layout](torch.randn(3, 8, 10, 12, device=device))
    check(activation, torch.randn(dy.shape, device=device), dy, 0.3)


@representatives
@rngs
@dtypes
def test_special_values(activation, rng, dtype, device):
    """Every special value, kept and dropped, under every special gradient."""
    info = torch.finfo(dtype)
    special = [0.0, info.smallest_normal / 4, info.smallest_normal, 1e-3, 1.0, info.max, torch.inf]
    values = torch.tensor([*special, *(-v for v in special), torch.nan], dtype=dtype, device=device)
    x, dy = torch.cartesian_prod(values, values).repeat(16, 1).t().contiguous()
    if activation.saves is Saves.ONE_BIT:
        # The documented exception: the one bit of a dropped positive element says "dead", whose
        # gradient is 0 where eager has inf * 0.
        dy[~torch.isfinite(dy)] = 1.0
    x[x.isnan()] = 1.0  # of which test_the_gradient_of_a_nan is
    if activation.saves is Saves.INPUT and dtype is torch.float64:
        # Eager scales first and overflows where the product needn't; the truth here is eager's.
        dy[dy.abs() == info.max] /= 4
    check(activation, x, dy, 0.5, rng=rng)


@representatives
@dtypes
def test_the_gradient_of_a_nan(activation, dtype, device):
    """Eager's of a single element: on a CPU its vectorised code may differ from that and from CUDA's."""
    x = torch.full((1000,), torch.nan, dtype=dtype, device=device, requires_grad=True)
    y = fused(activation, x, 0.5)
    assert y.isnan().all()
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(x))
    one = x.detach()[0].requires_grad_()
    (derivative,) = torch.autograd.grad(activation.function(one, *values(activation)), one)
    assert torch.equal(dx, mask(x, 0.5).to(dtype) * 2 * derivative)


@representatives
@rngs
@dtypes
@pytest.mark.parametrize("inplace", [False, True])
def test_bytes_kept_for_backward(activation, rng, dtype, inplace, device):
    """Counted where autograd asks for them, for a size that fills its tiles."""
    n = 2**15
    x = torch.randn(n, device=device, dtype=dtype, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        plan = make_plan(x, rng, (132, 2048))
        configuration = configured(activation, x, 0.5, rng, plan, inplace)
        autograd.fused(x * 1.0 if inplace else x, configuration, lambda: PhiloxState(SEED, OFFSET), inplace)
    # In place it is the output that ELU keeps, which the next layer keeps anyway.
    assert sum(t.numel() * t.element_size() for t in kept) == n * bytes_kept(activation, dtype.itemsize)


def test_bytes_that_a_net_of_three_layers_keeps(device):
    """784-512-512-10, a batch of 64 in bfloat16: the storages that autograd holds, against eager's.

    Weights and the net's input aside. The next layer holds the output of this one in any case.
    """
    sizes = (784, 512, 512, 10)
    n = 64 * 512

    def held(layer):
        x = torch.randn(64, 784, device=device, dtype=torch.bfloat16)
        weights = [
            torch.randn(b, a, device=device, dtype=x.dtype, requires_grad=True)
            for a, b in itertools.pairwise(sizes)
        ]
        storages = [t.untyped_storage() for t in (x, *weights)]
        given = {storage.data_ptr() for storage in storages}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: storages.append(t.untyped_storage()) or t, lambda t: t
        ):
            for weight in weights[:-1]:
                x = layer(torch.nn.functional.linear(x, weight))
            torch.nn.functional.linear(x, weights[-1])
        return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in given}.values()) / (
            2 * n
        )

    for activation, inplace in itertools.product(ENGINE, (False, True)):
        # From the output, the next layer's input is all that there is.
        kept = bytes_kept(activation, 2, inplace and activation.from_output is not None)

        def fused_layer(x, activation=activation, inplace=inplace):
            plan = make_plan(x, processors=(132, 2048))
            configuration = configured(activation, x, 0.5, plan=plan, inplace=inplace)
            return autograd.fused(x, configuration, lambda: PhiloxState(SEED, OFFSET), inplace)

        def eager_layer(x, activation=activation):
            return torch.nn.functional.dropout(activation.function(x, *values(activation)), 0.5)

        assert held(fused_layer) == 2 + kept
        # The output, the activation's, and the mask: on a GPU a byte, on a CPU a number of the dtype.
        own = 0 if activation.saves is Saves.MASK else 2
        assert held(eager_layer) == 2 + own + (1 if device == "cuda" else 2)


@representatives
@rngs
@pytest.mark.parametrize("n", SIZES)
def test_packed_bits(activation, rng, n, device):
    x = torch.randn(n, device=device)
    configuration = configured(activation, x, 0.3, rng)
    bits = forward_bits(configuration, x, torch.empty_like(x), PhiloxState(SEED, OFFSET))
    keep = mask(x, 0.3, rng=rng)
    expected = {
        Saves.ONE_BIT: [keep & (x > 0)],
        Saves.TWO_BITS: [keep, x > 0],
        Saves.INPUT: [keep],
        Saves.MASK: [keep],
    }[activation.saves]
    assert torch.equal(shapes.unpack(bits, n, configuration.plan), torch.stack(expected))


@representatives
def test_in_place(activation, device):
    """The result stands in the input's buffer, whatever its strides, and backward is right."""
    for layout, shape in itertools.product(
        ("contiguous", "transposed", "sliced"), [(3, 8, 10, 12), (3, 5, 7, 9)]
    ):
        leaf = LAYOUTS[layout](torch.randn(shape, device=device)).detach().requires_grad_()
        x = leaf * 1.0 if layout != "sliced" else LAYOUTS[layout](leaf.repeat(1, 1, 1, 1) * 1.0)
        expected = fused(activation, x, 0.3)
        (gradient,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
        y = fused(activation, x, 0.3, inplace=True)
        assert y.data_ptr() == x.data_ptr()
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        # From the output the gradient has its absolute accuracy, not its relative one.
        close = {"rtol": 0, "atol": 2 * torch.finfo(x.dtype).eps if activation.from_output else 0}
        torch.testing.assert_close(torch.autograd.grad(y.sum(), leaf)[0], gradient, **close)


@rngs
@dtypes
@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
def test_in_place_the_gradient_is_that_of_eager_in_place(rng, dtype, p, layout, device):
    """From the output: within twice eager's rounding of it, special values as they are in eager mode."""
    info = torch.finfo(dtype)
    special = [0.0, info.smallest_normal / 4, info.smallest_normal, 1e-3, 1.0, info.max, torch.inf]
    special = torch.tensor([*special, *(-v for v in special)], dtype=dtype, device=device)
    inputs = torch.cat([torch.randn(1986, device=device).mul_(3).to(dtype), special])
    dy = torch.randn(len(inputs), device=device).to(dtype)
    for elu in (a for a in ENGINE if a.from_output):
        leaf = inputs.clone().requires_grad_()
        x = leaf * 1.0 if layout == "contiguous" else torch.stack([leaf, leaf], 1)[:, 0]
        (dx,) = torch.autograd.grad(fused(elu, x, p, inplace=True, rng=rng), leaf, dy)
        used = plans.used_probability(p, rng)
        keep = mask(leaf, p, rng=rng)
        alpha = values(elu)
        eager = elu.function(leaf * 1.0, *alpha, inplace=True) * keep * (1 / (1 - used))
        (expected,) = torch.autograd.grad(eager.to(dtype), leaf, dy)
        assert torch.equal(dx.isnan(), expected.isnan())
        unit = info.eps * dy.double().abs() / (1 - used)
        error = (dx.double() - expected.double()).abs()
        assert (error <= 2 * unit * torch.where(leaf > 0, 1.0, alpha[0]) + info.smallest_normal).all()


def test_in_place_with_a_negative_alpha_keeps_the_input(device, monkeypatch):
    """Its outputs above 0 don't tell inputs above 0 from those below, so eager refuses; we keep a copy."""
    monkeypatch.setattr(plans, "processors", lambda device: PROCESSORS)
    for alpha in (-1.0, 1e38, 0.0, 1.0):
        configuration = dispatch.configured.__wrapped__(
            rows.ELU,
            torch.float16,
            torch.ones(1, device=device).get_device(),
            64,
            (alpha,),
            0.5,
            "fast",
            from_output=True,
        )
        assert configuration.saves_output == (alpha in (0.0, 1.0))
        assert configuration.saves_input == (not configuration.saves_output)


@representatives
def test_in_place_on_a_leaf_is_autograds_own_error(activation, device):
    x = torch.randn(100, device=device, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        fused(activation, x, 0.3, inplace=True)
    assert torch.equal(x.detach(), before)


def test_in_place_after_an_operation_that_saved_its_result_is_autograds_own_error(device):
    y = torch.randn(100, device=device, requires_grad=True).exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        fused(rows.RELU, y, 0.3, inplace=True).sum().backward()


@representatives
def test_calls_and_iterations_draw_their_own_numbers(activation, device):
    """No block, iteration or call repeats another's mask."""
    x = torch.ones(40_000, device=device)
    y = torch.cat([fused(activation, x, 0.5), fused(activation, x, 0.5, offset=OFFSET + 40)])
    pieces = (y != 0).view(-1, 100)
    assert len({tuple(piece.tolist()) for piece in pieces}) == len(pieces)


@representatives
@pytest.mark.parametrize(("rng", "vec"), [("eager", 8), ("eager", 1), ("fast", 8), ("fast", 1)])
def test_positions_past_2_to_the_31(activation, rng, vec, device, monkeypatch):
    """One program far out in a tensor of 2**32 + elements, most of whose memory is never touched."""
    if torch.cuda.is_available():
        pytest.skip("picks one program of a grid, which only the interpreter can; test_cuda.py runs all")
    from triton.runtime import interpreter

    torch.use_deterministic_algorithms(False)  # no poison: it would touch all the memory
    far = 2**32
    n = far + 2**15 + (1 if vec == 1 else 0)
    x = torch.empty(n, dtype=torch.float16)
    plan = make_plan(x, rng)
    assert plan.vec == vec
    # The grid's axis that counts far out, and the elements of one step along it.
    axis, span = (1, 256 * plan.blocks * plan.lanes) if rng == "eager" else (0, 4096)
    step = -(-far // span)
    shift = tuple(step * (i == axis) for i in range(3))
    set_index = interpreter.interpreter_builder.set_grid_idx
    set_size = interpreter.interpreter_builder.set_grid_dim
    shifted = {
        "set_grid_idx": lambda *index: set_index(*(i + d for i, d in zip(index, shift, strict=True))),
        "set_grid_dim": lambda *size: set_size(*(i + d for i, d in zip(size, shift, strict=True))),
    }
    for name, function in shifted.items():
        monkeypatch.setattr(interpreter.interpreter_builder, name, function)
    programs = shapes.grid(n, plan)[0] if rng == "eager" else 1
    # Only that step's elements are written: words far out, results near the end.
    y = torch.empty_like(x)
    here = slice(step * span, step * span + 4096)
    x[here] = torch.randn(4096).half()
    y[here] = torch.nan
    configuration = configured(activation, x, 0.3, rng, plan)._replace(grid=(programs, 1, 1))
    bits = forward_bits(configuration, x, y, PhiloxState(SEED, OFFSET))

    e = torch.arange(here.start, here.stop)
    p = configuration.p
    if rng == "eager":
        words = oracle.eager_words(e, plan, SEED, OFFSET)
    else:
        words = oracle.fast_numbers(e, SEED, OFFSET) << 16
    keep = words < plans.keep_threshold(p, False, rng)
    expected = composition.forward(activation, x[here], values(activation), p, keep)
    torch.testing.assert_close(y[here], expected, rtol=0, atol=2e-3)

    dx = torch.empty_like(x)
    dx[here] = torch.nan
    launch.backward(configuration, dx, x, bits, x if activation.saves is Saves.INPUT else None)
    expected = composition.backward(activation, x[here], values(activation), p, keep, x[here])
    torch.testing.assert_close(dx[here], expected, rtol=0, atol=4e-3)


@pytest.mark.parametrize("n", [40_000, 20_001])
def test_iterations_over_two_axes_of_the_grid(n, device, monkeypatch):
    """As where more iterations are needed than one axis of a grid allows."""
    monkeypatch.setattr(shapes, "_AXIS", 2)
    x, dy = torch.randn(2, n, device=device)
    assert shapes.grid(n, make_plan(x))[2] > 1
    check(rows.LEAKY_RELU, x, dy, 0.3)

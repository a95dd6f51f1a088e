"""Calls alike share what they need, from the third one on. A later call has to be as a first one."""

import contextlib
import sys
import threading
from decimal import Decimal
from unittest import mock

import pytest
import torch
from cases import ENGINE, LAYOUTS, both, fused_module, representatives, rngs
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from triton import knobs

from fusedact import ActivityMonitor, FusedLeakyDropout, FusedSoftplusDropout, autograd, dispatch, rows

pytestmark = pytest.mark.usefixtures("cuda", "no_graphs")
SHAPE = (2, 4, 6, 8)


def forget():
    dispatch._latest.clear()
    dispatch._shared.clear()


@pytest.fixture(autouse=True)
def nothing_shared():
    forget()
    yield
    forget()


@pytest.fixture
def often_switched():
    """Python changes threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def only_shared(monkeypatch):
    """A function from whose call on no other way runs."""

    def refuse(*_):
        raise AssertionError("not a shared call")

    def start():
        monkeypatch.setattr(dispatch, "by_kernels", refuse)
        monkeypatch.setattr(autograd, "_checked_backward", refuse)

    return start


def data(dtype=torch.float32):
    return torch.randn(SHAPE, device="cuda", dtype=dtype), torch.randn(SHAPE, device="cuda", dtype=dtype)


def cold(call):
    """What `call` returns, or the type and text of its error, if nothing is shared."""
    forget()
    return outcome(call)


def outcome(call):
    torch.manual_seed(3)
    try:
        result = call()
    except Exception as error:
        return type(error), str(error)
    results = map(torch.as_tensor, result) if isinstance(result, tuple) else [result]
    return type(result), *((type(r), r.stride(), r.detach().clone()) for r in results)


def assert_same(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        if isinstance(a, tuple):
            assert a[:2] == b[:2]
            torch.testing.assert_close(a[2], b[2], rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


def warm(layer, x, dy):
    """Run the layer until forward and backward are shared."""
    for _ in range(3):
        both(layer, x, dy)
    assert dispatch._latest


@representatives
@rngs
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_a_later_call_is_as_the_first(activation, rng, layout, only_shared):
    layer, (x, dy) = fused_module(activation, 0.4, rng=rng), map(LAYOUTS[layout], data())
    expected = []
    for seed in range(3):
        forget()
        expected.append(both(layer, x, dy, seed))
    warm(layer, x, dy)
    only_shared()
    for seed in range(3):
        for got, value in zip(both(layer, x, dy, seed), expected[seed], strict=True):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(value))


@representatives
def test_strides_of_dimensions_of_one_element(activation, only_shared):
    """The gradient has the input's, as in a first call, whatever the upstream gradient has."""
    layer, (x, dy) = fused_module(activation, 0.4), (torch.randn(64, 1, device="cuda") for _ in range(2))
    x = x.as_strided((64, 1), (1, 5))
    forget()
    expected = both(layer, x, dy)
    warm(layer, x, dy)
    only_shared()
    result = both(layer, x, dy)
    assert result[0].stride() == expected[0].stride()
    assert result[1].stride() == expected[1].stride() == x.stride()


def test_layers_and_functions_share(only_shared):
    x, dy = data()
    warm(FusedLeakyDropout(0.4), x, dy)
    only_shared()
    both(FusedLeakyDropout(0.4), x, dy)
    with pytest.raises(AssertionError, match="not a shared call"):
        both(FusedLeakyDropout(0.4, negative_slope=0.2), x, dy)


def set_attribute(layer, name, value):
    setattr(layer, name, value)
    return layer


def forward_mode(layer, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.ones_like(x))))


def within(context):
    def call(layer, x):
        with context():
            return layer(x)

    return call


def hooked(layer, x):
    seen = []
    hook = knobs.runtime.launch_enter_hook
    look = lambda metadata: seen.append(1.0)  # noqa: E731
    x = x.clone().requires_grad_()
    hook.add(look)
    try:
        (dx,) = torch.autograd.grad(layer(x), x, torch.ones_like(x))
    finally:
        hook.remove(look)
    return dx, torch.tensor(seen)


class Subclass(torch.Tensor):
    pass


# Equal to what the layer has, but no argument that is allowed.
OTHER_TYPES = [("p", Decimal("0.5")), ("training", 1), ("inplace", 0), ("rng", ["eager"])]
FORWARD = {
    **{name: lambda layer, x, change=change: layer(change(x)) for name, change in LAYOUTS.items()},
    **{
        f"odd, {name}": lambda layer, x, change=change: layer(change(x[:1, :3, :5, :7].contiguous()))
        for name, change in LAYOUTS.items()
    },
    "shape": lambda layer, x: layer(x.view(4, -1)),
    "dtype": lambda layer, x: layer(x.half()),
    "requires_grad": lambda layer, x: layer(x.clone().requires_grad_()),
    "parameter": lambda layer, x: layer(nn.Parameter(x)),
    "subclass": lambda layer, x: layer(x.as_subclass(Subclass)),
    "p": lambda layer, x: set_attribute(layer, "p", 0.2)(x),
    "rng": lambda layer, x: set_attribute(layer, "rng", "fast")(x),
    "inplace": lambda layer, x: set_attribute(layer, "inplace", True)(x.clone()),
    "eval": lambda layer, x: layer.eval()(x),
    "another GPU": lambda layer, x: layer(x.to("cuda:1")),
    "another GPU is current": within(lambda: torch.cuda.device(1)),
    "no_grad": within(torch.no_grad),
    "inference mode": within(torch.inference_mode),
    "autocast": within(lambda: torch.autocast("cuda", torch.bfloat16)),
    "vmap": lambda layer, x: torch.func.vmap(layer, randomness="different")(x),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "forward mode": forward_mode,
    "trace": lambda layer, x: torch.jit.trace(layer, (x,), check_trace=False)(x),
    "export": within(lambda: mock.patch.object(torch.compiler, "_is_compiling_flag", True)),
    "compile": lambda layer, x: torch.compile(layer, backend="eager")(x),
    "nested": lambda layer, x: layer(torch.nested.as_nested_tensor([*x.view(4, -1)])).unbind(),
    "nested on the CPU": lambda layer, x: layer(
        torch.nested.as_nested_tensor([*x.cpu().view(4, -1)])
    ).unbind(),
    "sparse": lambda layer, x: layer(
        torch.sparse_coo_tensor(torch.zeros(4, 1, dtype=torch.int64), x.flatten()[:1], SHAPE, device="cuda")
    ),
    "symbolic": lambda layer, x: make_fx(torch.func.grad(lambda x: layer(x).sum()), tracing_mode="symbolic")(
        x
    ),
    "Triton's hooks": hooked,
    "functional": lambda layer, x: torch._from_functional_tensor(layer(torch._to_functional_tensor(x))),
    "no tensor": lambda layer, x: layer(1.0),
    "CPU": lambda layer, x: layer(x.cpu()),
    **{
        f"{name}={value!r}": lambda layer, x, name=name, value=value: set_attribute(layer, name, value)(x)
        for name, value in OTHER_TYPES
    },
}


@pytest.mark.parametrize("activation", [rows.LEAKY_RELU, rows.IDENTITY], ids=lambda row: row.name)
@pytest.mark.parametrize("change", FORWARD)
@pytest.mark.filterwarnings("ignore")
def test_whatever_changes_before_forward(activation, change):
    if "another" in change and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA GPUs")
    x, _ = data()
    expected = cold(lambda: FORWARD[change](fused_module(activation), x))
    layer = fused_module(activation)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
    for _ in range(3):
        assert_same(outcome(lambda: FORWARD[change](layer, x)), expected)


@pytest.mark.parametrize("value", [0.2, -0.0, True, "0.01", torch.tensor(0.5)], ids=repr)
def test_another_parameter(value):
    x, dy = data()
    layer = set_attribute(FusedLeakyDropout(0.4), "negative_slope", value)
    expected = cold(lambda: layer(x))
    for slope in (1.0, 0.0, 0.01):
        warm(FusedLeakyDropout(0.4, negative_slope=slope), x, dy)
        assert_same(outcome(lambda: layer(x)), expected)


def test_a_mask_that_depends_on_the_alignment(monkeypatch):
    monkeypatch.undo()  # `no_graphs`, so that the kernels for aligned memory are loaded
    layer, (x, _) = fused_module(rows.IDENTITY), data()
    misaligned = LAYOUTS["misaligned"](x)
    expected = [cold(lambda x=x: layer(x)) for x in (misaligned, x)]
    forget()
    for each, value in zip((misaligned, x), expected, strict=True):
        for _ in range(4):
            assert_same(outcome(lambda x=each: layer(x)), value)


def test_in_place_calls_share_nothing():
    """In place, ELU's backward reads the output."""
    layer, (x, dy) = fused_module(rows.ELU, inplace=True), data()
    expected = cold(lambda: both(fused_module(rows.ELU), x, dy))
    for _ in range(3):
        both(lambda x: layer(x * 1.0), x, dy)
    layer.inplace = False
    for _ in range(3):
        assert_same(outcome(lambda: both(layer, x, dy)), expected)


def test_watched_calls_are_counted():
    layer, (x, _) = fused_module(rows.RELU), data()
    layer(x), layer(x)
    with ActivityMonitor(layer) as monitor:
        layer(x), layer(x)
    assert [counted.samples for counted in monitor.report()] == [2 * SHAPE[0] * SHAPE[2] * SHAPE[3]]


def test_what_widens_under_autocast():
    x, layer = data(torch.float16)[0], FusedSoftplusDropout(0.4)
    for _ in range(3):
        assert layer(x).dtype is torch.float16
        with torch.autocast("cuda"):
            assert layer(x).dtype is torch.float32


def backward_in_forward_mode(y, x, dy):
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, forward_ad.make_dual(dy, dy * 2))
        return forward_ad.unpack_dual(dx)


BACKWARD = {
    **{
        name: lambda y, x, dy, change=change: torch.autograd.grad(y, x, change(dy))[0]
        for name, change in LAYOUTS.items()
        if name != "0-d"
    },
    "zero": lambda y, x, dy: torch.autograd.grad(y, x, torch._efficientzerotensor(SHAPE, device="cuda"))[0],
    "with a graph": lambda y, x, dy: torch.autograd.grad(y, x, dy, create_graph=True)[0],
    "batched": lambda y, x, dy: torch.autograd.grad(y, x, torch.stack([dy, -dy]), is_grads_batched=True)[0],
    "forward mode": backward_in_forward_mode,
}


# Hooks that give back the saved values in another layout.
UNPACKED = [name for name in LAYOUTS if name not in ("0-d", "expanded")]


@representatives
@pytest.mark.parametrize(
    ("change", "unpack"),
    [*((change, None) for change in BACKWARD), *(("with a graph", name) for name in UNPACKED)]
    + [("contiguous", name) for name in (*UNPACKED, "nested")],
)
def test_whatever_changes_before_backward(activation, change, unpack):
    layer, (x, dy) = fused_module(activation, 0.4), data()
    x.requires_grad_()

    bits_back = LAYOUTS["negated" if unpack == "negated" else "contiguous"]

    def back(saved):
        if unpack == "nested":
            return torch.nested.as_nested_tensor([*saved.flatten(1)])
        return LAYOUTS[unpack](saved) if saved.dim() == 4 else bits_back(saved)

    def call():
        with saved_tensors_hooks(lambda saved: saved, back) if unpack else contextlib.nullcontext():
            y = layer(x)
        return BACKWARD[change](y, x, dy)

    expected = cold(call)
    warm(layer, x, dy)
    for _ in range(3):
        assert_same(outcome(call), expected)


@representatives
def test_forward_mode_through_backward(activation):
    """The gradient is linear in the upstream gradient, whose tangent is twice itself."""
    layer, (x, dy) = fused_module(activation, 0.4), data()
    x.requires_grad_()
    for _ in range(4):
        y = layer(x)
        (expected,) = torch.autograd.grad(y, x, dy, retain_graph=True)
        gradient, tangent = backward_in_forward_mode(y, x, dy)
        torch.testing.assert_close(gradient, expected)
        torch.testing.assert_close(tangent, 2 * expected)


def test_inputs_that_always_change_are_not_prepared_for(monkeypatch):
    monkeypatch.setattr(autograd, "shared", None)
    monkeypatch.setattr(dispatch, "_MOST", 4)
    layer = FusedLeakyDropout(0.4)
    for n in range(8, 88, 8):
        layer(torch.ones(n, device="cuda"))
        assert len(dispatch._shared) <= 4
    monkeypatch.undo()
    monkeypatch.setattr(dispatch, "_MOST", 4)
    for n in range(8, 88, 8):
        x = torch.ones(n, device="cuda")
        layer(x), layer(x), layer(x)
        assert 0 < len(dispatch._latest) <= 4


def test_inputs_in_turn(only_shared):
    """Each kind is prepared for once, and no other is taken for it."""
    layer, (x, _) = fused_module(rows.LEAKY_RELU, 0.4), data()
    others = x.half(), x.to(memory_format=torch.channels_last), x.clone().requires_grad_()
    kinds = [x, x.view(8, -1), *others]
    expected = [cold(lambda x=x: layer(x)) for x in kinds]
    for turn in range(4):
        if turn == 2:
            only_shared()
        for x, value in zip(kinds, expected, strict=True):
            assert_same(outcome(lambda x=x: layer(x)), value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cuda")])
def test_modes_in_turn(mode, only_shared):
    """A model may train inside a mode and look at its result outside."""
    layer, (x, _) = fused_module(rows.LEAKY_RELU, 0.4), data()
    with torch.inference_mode():
        inference = x.clone()
    calls = [lambda: layer(x), lambda: within(mode)(layer, x), lambda: layer(inference)]
    expected = [cold(call) for call in calls]
    for turn in range(4):
        if turn == 2:
            only_shared()
        for call, value in zip(calls, expected, strict=True):
            assert_same(outcome(call), value)


def test_a_later_call_reserves_as_many_numbers():
    """Eager's loop goes round more than once on small GPUs."""
    layer, x = fused_module(rows.RELU), torch.ones(40_000, device="cuda")
    generator, offsets = torch.cuda.default_generators[0], []
    for _ in range(5):
        layer(x)
        offsets.append(generator.get_offset())
    assert len(set(torch.tensor(offsets).diff().tolist())) == 1


def test_threads_get_numbers_of_their_own(often_switched):
    layer, (x, dy) = fused_module(ENGINE[0], 0.4), data()
    warm(layer, x, dy)
    generator = torch.cuda.default_generators[0]
    before, calls, threads = generator.get_offset(), 50, 4
    layer(x)
    increment = generator.get_offset() - before

    def work():
        for _ in range(calls):
            layer(x)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert generator.get_offset() == before + increment * (1 + calls * threads)

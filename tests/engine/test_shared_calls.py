"""Calls alike share what they need, from the third one on. A later call has to be as a first one."""

import sys
import threading

import pytest
import torch
from cases import ENGINE, LAYOUTS, both, fused_module, representatives, rngs
from shared import SHAPE, assert_same, cold, data, forget, outcome, set_attribute, warm, within
from torch import nn
from torch._dynamo import compiled_autograd
from torch.utils.flop_counter import FlopCounterMode

from fusedact import (
    ActivityMonitor,
    FusedLeakyDropout,
    FusedSoftplusDropout,
    _torch,
    autograd,
    dispatch,
    rows,
)
from fusedact.kernels import launch

pytestmark = pytest.mark.usefixtures("cuda", "no_graphs", "nothing_shared")


@pytest.fixture
def often_switched():
    """Python changes threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


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


@representatives
@rngs
def test_large_seeds_and_offsets(activation, rng, only_shared):
    """The kernel gets them in halves."""
    layer, (x, dy) = fused_module(activation, 0.4, rng=rng), data()
    leaf = x.detach().requires_grad_()
    generator, results = torch.cuda.default_generators[0], []
    states = [(2**40 + 5, 4), (5, 4), (5, 2**36), (2**63 + 5, 2**40)]
    for shared in (False, True):
        if shared:
            warm(layer, x, dy)
            only_shared()
        for seed, offset in states:
            if not shared:
                forget()
            generator.manual_seed(seed)
            generator.set_offset(offset)
            results.append(layer(leaf))
    masks = [result != 0 for result in results]
    assert all(map(torch.equal, masks[:4], masks[4:]))
    assert not any(torch.equal(masks[i], masks[j]) for i in range(4) for j in range(i))


@representatives
def test_out_of_memory(activation, monkeypatch):
    """The call fails, and the generator stays where it was."""
    layer, (x, dy), left = fused_module(activation, 0.4), data(), [1000]
    allocator = _torch.allocator

    def short(like):
        def empty(*layout):
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError
            return allocator(like)(*layout)

        return empty

    monkeypatch.setattr(_torch, "allocator", short)
    warm(layer, x, dy)
    expected = both(layer, x, dy)
    for enough in range(3):
        left[0] = enough
        with pytest.raises(torch.OutOfMemoryError):
            both(layer, x, dy)
        left[0] = 1000
        offset = torch.cuda.default_generators[0].get_offset()
        assert offset == (0 if enough < 2 else expected[2])
        for got, value in zip(both(layer, x, dy), expected, strict=True):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(value))


@representatives
def test_backward_may_not_be_ready(activation, monkeypatch):
    """If Triton kept no kernel, as in its debug mode, each backward goes the longer way."""
    layer, (x, dy) = fused_module(activation, 0.4), data()
    expected = both(layer, x, dy)
    monkeypatch.setattr(launch, "backward_like", lambda *_: None)
    for _ in range(4):
        for got, value in zip(both(layer, x, dy), expected, strict=True):
            assert torch.equal(torch.as_tensor(got), torch.as_tensor(value))


@pytest.mark.parametrize("activation", [rows.RELU, rows.GELU], ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd(activation):
    """Sizes share code that is compiled once. Backward is ready for some of them, and not yet for others."""
    layer, warmed = fused_module(activation, 0.4), (8, 16, 24) if activation is rows.RELU else ()
    inputs = {n: torch.randn(2, n, 8, device="cuda") for n in (40, 8, 16, 24, 32)}
    expected = {n: both(layer, *inputs[n])[1] for n in inputs}
    forget()
    for n in warmed:
        warm(layer, *inputs[n])
    for n, (x, dy) in inputs.items():
        for _ in range(5):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(7)
            y = layer(leaf)
            with compiled_autograd._enable(torch.compile(backend="eager")):
                y.backward(dy)
            torch.testing.assert_close(leaf.grad, expected[n])


def test_layers_and_functions_share(only_shared):
    x, dy = data()
    warm(FusedLeakyDropout(0.4), x, dy)
    only_shared()
    both(FusedLeakyDropout(0.4), x, dy)
    with pytest.raises(AssertionError, match="not a shared call"):
        both(FusedLeakyDropout(0.4, negative_slope=0.2), x, dy)


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
    others = x.half(), x.to(memory_format=torch.channels_last), x.clone().requires_grad_(), nn.Parameter(x)
    kinds = [x, x.view(8, -1), *others]
    expected = [cold(lambda x=x: layer(x)) for x in kinds]
    for turn in range(4):
        if turn == 2:
            only_shared()
        for x, value in zip(kinds, expected, strict=True):
            assert_same(outcome(lambda x=x: layer(x)), value)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cuda"), FlopCounterMode]
)
@pytest.mark.filterwarnings("ignore")
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

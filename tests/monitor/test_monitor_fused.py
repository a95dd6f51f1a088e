"""Fused modules whose kernels run: counted from the packed bits where they tell, and from the input else."""

import contextlib

import pytest
import torch
from cases import DTYPES, OFFSET, SEED, WATCHED, eager_modules, fused_module, watched
from torch.utils.checkpoint import checkpoint
from watching import check_counts, only

from fusedact import ActivityMonitor, FusedELUDropout, FusedReLUDropout, _torch, dispatch, operators, rows
from fusedact.kernels.counted import Row
from fusedact.masks import plan as plans
from fusedact.monitor.tally import Tally


class Generator:
    """A GPU's, as much of it as a call asks for."""

    offset = OFFSET

    def initial_seed(self):
        return SEED

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset


@pytest.fixture
def through_kernels(device, monkeypatch):
    """The device of modules that run the kernels: in the interpreter CPU tensors pass for a small GPU's.

    What an input has to have to be sampled is less, too.
    """
    monkeypatch.setattr("fusedact.monitor.counting.WHOLE", 2**14)
    if device == "cpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
        monkeypatch.setattr(_torch, "_empty_on_gpu", None)
        monkeypatch.setattr(dispatch, "_is_capturing", lambda: False)
        monkeypatch.setattr(dispatch, "_current_device", lambda: -1)
        monkeypatch.setattr(torch.cuda, "default_generators", [Generator()])
        monkeypatch.setattr(plans, "processors", lambda device: (4, 512))
    dispatch.configured.cache_clear()
    yield device
    dispatch.configured.cache_clear()


@pytest.fixture
def launched(device, monkeypatch):
    """What is launched: names, and the tensors' bytes."""
    from fusedact.kernels.launcher import Kernel

    launches = []
    call = Kernel.__call__

    def recorded(self, grid, tensors, scalars):
        launches.append((self._function.__name__, list(tensors), self._constants))
        return call(self, grid, tensors, scalars)

    monkeypatch.setattr(Kernel, "__call__", recorded)
    return launches


def names(launched):
    return [name for name, _, _ in launched]


FROM_BITS = ["input_kernel", "forward_kernel", "fired_kernel"]


FROM_INPUT = ["input_kernel", "input_kernel", "forward_kernel"]


FROM_WHOLE = ["input_kernel", "forward_kernel"]


CASES = {
    "units last": ((157, 128), -1, FROM_BITS),
    "positions": ((10, 8, 16, 16), 1, FROM_BITS),
    "units first": ((128, 157), 0, FROM_INPUT),  # a period of all elements
    "few elements": ((30, 16), -1, FROM_WHOLE),
    "odd": ((157, 131), -1, FROM_INPUT),
}


@watched
@pytest.mark.parametrize("rng", plans.RNGS)
@pytest.mark.parametrize("case", CASES)
def test_fused_and_plain_agree_in_the_kernels(activation, rng, case, through_kernels, launched, monkeypatch):
    shape, dim, expected = CASES[case]
    x = (torch.randn(shape, device=through_kernels) * 4).half()
    fused = fused_module(activation, rng=rng)
    with ActivityMonitor(fused, units=dim) as monitor:
        fused(x)
    assert names(launched) == expected
    with monkeypatch.context() as patch:
        patch.setattr("fusedact.monitor.counting._kernels", lambda: None)
        plain = eager_modules(activation)
        with ActivityMonitor(plain, units=dim) as reference:
            plain[0](x)
    layer, other = only(monitor.report()), only(reference.report())
    check_counts(layer, activation, x, dim)
    assert torch.equal(layer.fired, other.fired)
    same = ("samples", "activity_samples", "negative", "saturated")
    assert [getattr(layer, name) for name in same] == [getattr(other, name) for name in same]
    torch.testing.assert_close(layer.activity, other.activity, rtol=1e-3, atol=0)


@watched
@pytest.mark.parametrize("p", [0.2, 0.8])
@pytest.mark.parametrize("inplace", [False, True])
def test_planted_dead_units_in_the_kernels(activation, p, inplace, through_kernels, launched):
    planted = [0, 17, 63]
    module = fused_module(activation, p, inplace)
    bias = torch.zeros(64, device=through_kernels)
    bias[planted] = -1e3
    x = torch.rand(260, 64, device=through_kernels) + 0.1 + bias
    with ActivityMonitor(module) as monitor:
        module(x.clone())
    assert names(launched) == FROM_BITS
    layer = only(monitor.report())
    assert (layer.fired == 0).nonzero().flatten().tolist() == planted
    assert layer.fired.sum() == 260 * 61


def test_two_monitors_and_a_copied_input_in_the_kernels(through_kernels, launched):
    """In place, an ELU of negative alpha works on a copy."""
    module = FusedELUDropout(0.5, alpha=-0.5, inplace=True)
    x = torch.randn(260, 64, device=through_kernels)
    with ActivityMonitor(module) as outer, ActivityMonitor(module) as inner:
        module(x.clone())
    assert names(launched) == [FROM_BITS[0], *FROM_BITS, FROM_BITS[-1]]
    for monitor in (outer, inner):
        check_counts(only(monitor.report()), rows.RELU, x, -1)


@pytest.mark.parametrize("same", [True, False])
def test_signs_count_only_for_their_own_layout(same, through_kernels):
    x = torch.rand(260, 64, device=through_kernels)
    tally = Tally.zeros(64, through_kernels)
    signs = torch.zeros(5 * 128, dtype=torch.int32, device=through_kernels)
    stride = x.stride() if same else x.t().stride()
    torch.ops.fusedact.count_activity(x, signs, stride, "fast", 1, "relu", [], 31, *tally)
    assert tally.counts[0].tolist() == [260] + [0 if same else 260] * 64


def test_an_empty_input_of_the_operator(through_kernels):
    tally = Tally.zeros(0, through_kernels)
    for shape in ((5, 0), (0, 0)):
        x = torch.empty(shape, device=through_kernels)
        torch.ops.fusedact.count_activity(x, None, (), "eager", 1, "relu", [], 31, *tally)
    assert tally.counts.tolist() == [[0]] * len(Row)


@watched
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signs_of_special_values(activation, dtype, through_kernels, launched):
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.smallest_normal / 4, info.max, info.min]
    x = torch.tensor(special, dtype=dtype, device=through_kernels).repeat(2100, 1)
    module = fused_module(activation)
    with ActivityMonitor(module) as monitor:
        module(x)
    assert names(launched) == FROM_BITS
    layer = only(monitor.report())
    assert layer.fired.tolist() == [0, 0, 2100, 0, 0, 2100, 2100, 0]
    read = layer.finite_samples
    assert read == layer.activity_samples < layer.samples == 2100
    assert layer.nan.tolist() == [0, 0, 0, 0, read, 0, 0, 0]
    assert layer.inf.tolist() == [0, 0, read, read, 0, 0, 0, 0]
    assert layer.negative == pytest.approx(4 / 7)  # of the seven units that aren't NaN


def test_results_are_the_same_with_and_without_it_in_the_kernels(through_kernels):
    x = torch.randn(260, 64, device=through_kernels, requires_grad=True)
    for activation in WATCHED:
        results = []
        for counted in (False, True):
            module = fused_module(activation)
            if through_kernels == "cpu":
                torch.cuda.default_generators[0].set_offset(OFFSET)
            torch.manual_seed(0)
            monitor = ActivityMonitor(module) if counted else None
            y = module(x)
            results.append((y, *torch.autograd.grad(y.sum(), x)))
            assert monitor is None or only(monitor.report()).samples == 260
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_recomputed_forward_counts_once_in_the_kernels(through_kernels, launched):
    module, x = FusedReLUDropout(0.5), torch.randn(260, 64, device=through_kernels, requires_grad=True)
    with ActivityMonitor(module) as monitor:
        checkpoint(module, x, use_reentrant=False, preserve_rng_state=False).sum().backward()
    assert names(launched).count("forward_kernel") == 2
    check_counts(only(monitor.report()), rows.RELU, x, -1)


def test_a_loop_that_ends_within_a_tile_is_counted_from_the_input(through_kernels, launched, monkeypatch):
    """Programs' words then don't follow each other as the elements do."""
    if through_kernels == "cuda":
        pytest.skip("needs a GPU of 3 multiprocessors, which the interpreter plays")
    monkeypatch.setattr(plans, "processors", lambda device: (3, 512))
    module, x = FusedReLUDropout(0.5), torch.randn(260, 64)
    with ActivityMonitor(module) as monitor:
        module(x)
    assert names(launched) == FROM_INPUT
    check_counts(only(monitor.report()), rows.RELU, x, -1)


def test_views_that_have_no_bits_of_their_own(through_kernels, launched):
    """The kernels run on a copy; the monitor reads one too."""
    module, x = FusedReLUDropout(0.5), torch.randn(260, 128, device=through_kernels)
    for view in (x[:, ::2], x[:, :1].expand(-1, 64), torch._neg_view(x)):
        with ActivityMonitor(module) as monitor:
            module(view)
        check_counts(only(monitor.report()), rows.RELU, view, -1)
    module(x.t())  # unwatched
    with ActivityMonitor(module) as monitor:
        module(x.t())
    assert "fired_kernel" not in names(launched)
    check_counts(only(monitor.report()), rows.RELU, x.t(), -1)


@watched
@pytest.mark.parametrize(
    ("case", "rng", "inplace"),
    [
        ("units last", "eager", False),
        ("units last", "fast", True),
        ("positions", "eager", True),
        ("few elements", "eager", False),
        ("odd", "eager", False),
    ],
)
def test_compiled_for_the_kernels(activation, rng, case, inplace, through_kernels, launched, monkeypatch):
    """A compiler's graph has the operators; in the interpreter too."""
    monkeypatch.setattr(operators, "DEVICE", through_kernels)
    torch.compiler.reset()
    shape, dim, expected = CASES[case]
    x = (torch.randn(shape, device=through_kernels) * 4).half()
    module = fused_module(activation, 0.5, inplace, rng)
    with ActivityMonitor(module, units=dim) as monitor:
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        compiled(x.clone())
    assert sorted(names(launched)) == sorted(expected)
    check_counts(only(monitor.report()), activation, x, dim)


# What forward and backward move per element with a monitor, by what they move without.
MOST = 1.05


@watched
@pytest.mark.parametrize(
    ("dtype", "rng"),
    [(torch.bfloat16, "eager"), (torch.bfloat16, "fast"), (torch.float32, "eager")],
    ids=["bfloat16", "bfloat16-fast", "float32"],
)
def test_a_monitor_moves_few_bytes_more(activation, rng, dtype, through_kernels, launched):
    """Each tensor of a launch once, and of the sampled input what is read of it; full tiles."""
    module = fused_module(activation, rng=rng)
    x = torch.randn(512, 64, dtype=dtype, device=through_kernels, requires_grad=True)
    moved = []
    for counted in (False, True):
        launched.clear()
        with ActivityMonitor(module) if counted else contextlib.nullcontext():
            module(x).sum().backward()
        assert names(launched) == [*(FROM_BITS if counted else ["forward_kernel"]), "backward_kernel"]
        moved.append(sum(bytes_moved(*launch) for launch in launched))
    assert 1 < moved[1] / moved[0] < MOST


def bytes_moved(name, tensors, constants):
    if name == "input_kernel":
        assert [constants[name] for name in ("FIRED", "FINITE", "ACTIVITY")] == [False, True, True]
        return tensors[0].nbytes * 17 / 512  # rows
    if name == "fired_kernel":
        return tensors[0].numel() * 4  # the tally is a few words
    return sum(tensor.nbytes for tensor in tensors)

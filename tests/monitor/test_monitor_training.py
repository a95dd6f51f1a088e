"""Under checkpoints, autocast, inference mode and compilers."""

import contextlib
import functools

import pytest
import torch
from cases import values, watched
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from watching import check, kinds, net, only

from fusedact import ActivityMonitor, FusedReLUDropout, rows
from fusedact.monitor.tally import Tally


@kinds
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_counts_once(make, reentrant):
    model = net(make(rows.RELU))
    x = torch.randn(30, 12, requires_grad=True)
    with ActivityMonitor(model) as monitor:
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    check(only(monitor.report()), rows.RELU, model[0](x), tolerance=1e-6)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(make, dtype):
    model, x = net(make(rows.RELU)), torch.randn(30, 12)
    with ActivityMonitor(model) as monitor, torch.autocast("cpu", dtype):
        model(x).float().sum().backward()
        middle = model[0](x)
    assert middle.dtype is dtype
    check(only(monitor.report()), rows.RELU, middle, tolerance=1e-6)


@kinds
def test_a_selective_checkpoint_saves_nothing_of_it(make):
    """What it saves, it looks up by the order of the operators that its function calls."""
    model = net(make(rows.RELU, 0.0))
    x = torch.randn(30, 12, requires_grad=True)

    def saved(context, operator, *args, **kwargs):
        relu = operator is torch.ops.aten.relu.default
        return CheckpointPolicy.MUST_SAVE if relu else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, saved)
    with ActivityMonitor(model) as monitor:
        y = checkpoint(model, x, use_reentrant=False, context_fn=contexts)
        found = torch.autograd.grad(y.sum(), x)
    assert torch.equal(found[0], torch.autograd.grad(model(x).sum(), x)[0])
    check(only(monitor.report()), rows.RELU, model[0](x), tolerance=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_inference_mode(compiled):
    torch.compiler.reset()
    model, x = net(FusedReLUDropout()), torch.randn(5, 12)
    with ActivityMonitor(model) as monitor:
        run = torch.compile(model, backend="aot_eager") if compiled else model
        with contextlib.nullcontext() if compiled else torch.inference_mode():
            run(x)
        run(x).sum().backward()
        with torch.inference_mode():
            run(x)
        assert only(monitor.end_window()).samples == 15
        run(x)
    check(only(monitor.report()), rows.RELU, model[0](x), tolerance=1e-6)


@watched
@kinds
def test_compiled(activation, make):
    torch.compiler.reset()
    model = net(make(activation))
    batches = [torch.randn(n, 12) for n in (8, 8, 5, 9)]
    with ActivityMonitor(model) as monitor:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for x in batches[:2]:
            compiled(x).sum().backward()
        check(only(monitor.end_window()), activation, model[0](torch.cat(batches[:2])), tolerance=1e-6)
        for x in batches[2:]:
            compiled(x).sum().backward()
    compiled(batches[0])  # may still count, but not here
    check(only(monitor.report()), activation, model[0](torch.cat(batches[2:])), tolerance=1e-6)


@kinds
def test_compiled_for_two_monitors(make):
    torch.compiler.reset()
    model = net(make(rows.RELU))
    compiled = torch.compile(model, backend="aot_eager")
    with ActivityMonitor(model) as one, ActivityMonitor(model, mode="train") as other:
        for n, training in ((8, True), (5, False), (3, True)):
            compiled.train(training)
            compiled(torch.randn(n, 12)).sum().backward()
    assert (only(one.report()).samples, only(other.report()).samples) == (16, 11)


@watched
def test_operator(activation):
    arguments = (
        torch.randn(5, 12),
        None,
        (),
        "eager",
        1,
        activation.name,
        list(values(activation)),
        31,
    )
    arguments += Tally.zeros(12, "cpu")
    torch.library.opcheck(torch.ops.fusedact.count_activity.default, arguments)


@pytest.mark.parametrize("inside", [True, False])
def test_compiled_and_checkpointed(inside):
    """The checkpoint inside the compiled function, or around it."""
    torch.compiler.reset()
    model, x = net(FusedReLUDropout(0.0)), torch.randn(30, 12, requires_grad=True)
    with ActivityMonitor(model) as monitor:

        def recomputed(x):
            return checkpoint(model, x, use_reentrant=False)

        if inside:
            y = torch.compile(recomputed, backend="aot_eager")(x)
        else:
            y = checkpoint(torch.compile(model, backend="aot_eager"), x, use_reentrant=False)
        y.sum().backward()
    check(only(monitor.report()), rows.RELU, model[0](x), tolerance=1e-6)


def test_compiled_before_the_monitor_says_so():
    torch.compiler.reset()
    model, x = net(FusedReLUDropout()), torch.randn(8, 12)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    with ActivityMonitor(model) as monitor:
        compiled(x)
        report = monitor.report()
        if not report.layers:
            assert report.silent == ("1",)
            assert "Not called in this window: 1" in str(report)
            assert "torch.compiler.reset()" in str(report)
        torch.compiler.reset()
        compiled(x)
    assert only(monitor.report()).samples in (8, 16)

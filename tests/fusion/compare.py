"""A plain model beside a fused one: same seed, same bits."""

import copy

import torch

import fusedact

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))


def results(model, inputs, kwargs):
    """A step's output and the gradients by name. Leaves buffers as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.zero_grad()
    torch.manual_seed(1)
    output = model(*inputs, **kwargs)
    output = getattr(output, "loss", None) if hasattr(output, "keys") else output
    output = sum(part.sum() for part in output) if isinstance(output, tuple) else output
    if output.requires_grad:
        output.square().sum().backward()
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return {"": output.detach(), **{k: p.grad for k, p in model.named_parameters() if p.grad is not None}}


def assert_same(plain, fused, *inputs, **kwargs):
    """Outputs and gradients, in the mode that the models are in."""
    expected, got = results(plain, inputs, kwargs), results(fused, inputs, kwargs)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0, msg=name, equal_nan=True)


def assert_unchanged(plain, fused):
    """What code can see of a model is what it was."""
    one, two = dict(plain.named_modules()), dict(fused.named_modules())
    assert list(one) == list(two)
    for name, module in one.items():
        assert type(two[name]) is type(module)
        assert vars(two[name]).keys() == vars(module).keys()
        assert two[name].training == module.training
        for attribute, value in vars(module).items():
            assert type(vars(two[name])[attribute]) is type(value) or isinstance(value, set)
            if isinstance(value, set):
                assert vars(two[name])[attribute] == value
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert repr(plain) == repr(fused)


def check(kernels, model, *inputs, fused, left=0, runs=None, **kwargs):
    """Fuse, count, compare in training and in eval, for copies and after `unfuse`. Returns the fused model.

    `runs`: how many calls run fused in a training step; by default `fused`.
    """
    new = fusedact.fuse(model)
    report = fusedact.fusion_report(new)
    assert (len(report.fused), len(report.left)) == (fused, left), str(report)
    assert_unchanged(model, new)
    for training in (True, False):
        model.train(training), new.train(training)
        kernels.clear()
        assert_same(model, model, *inputs, **kwargs)
        assert not kernels
        assert_same(model, new, *inputs, **kwargs)
        assert len(kernels) == (0 if not training else fused if runs is None else runs)
    model.train(), new.train()
    back = fusedact.unfuse(copy.deepcopy(new))
    kernels.clear()
    assert_same(model, back, *inputs, **kwargs)
    assert not kernels
    assert_unchanged(model, back)
    return new


def runs(kernels, model, *inputs, **kwargs):
    """How many calls ran fused, and the output."""
    kernels.clear()
    output = model(*inputs, **kwargs)
    return len(kernels), output

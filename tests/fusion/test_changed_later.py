"""Hooks, flags, and what others replace after the model was fused."""

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, runs
from nets import PAIRS, Net
from torch import nn

from fusedact import fuse, fusion_report

HOOKS = [
    name
    for name in dir(nn.Module)
    if name.startswith("register_") and name.endswith("hook") and "dict" not in name
]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", ["act", "drop", "out.1", "out.2"])
def test_hooks_of_every_kind(kernels, kind, place):
    net = Net()
    new = fuse(net)
    fired = []
    for model in (net, new):
        module = model.get_submodule(place)
        getattr(module, kind)(lambda *_: fired.append(1) or None)
        module.inplace = False
    assert_same(net, new, X.clone().requires_grad_())
    assert len(fired) == 2
    kernels.clear()
    assert runs(kernels, new, X)[0] == PAIRS - 1
    assert [pair.reason for pair in fusion_report(new).left] == [f"hooks on {type(module).__name__}"]


def test_global_hooks(kernels):
    new = fuse(Net())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    assert runs(kernels, new, X)[0] == 0
    assert (seen.count(nn.ReLU), seen.count(nn.Dropout)) == (2, 2)
    handle.remove()
    assert runs(kernels, new, X)[0] == PAIRS


def flags(net):
    net.drop.eval()


def probability(net):
    net.drop.p, net.out[2].p = 0.9, 0


def monte_carlo(net):
    net.eval()
    for module in net.modules():
        if module.__class__.__name__.startswith("Dropout"):
            module.train()


def forward_of_the_instance(net):
    net.act.forward = lambda x: x * 2


def other_module(net):
    net.act, net.out[2] = nn.Tanh(), nn.Identity()


def own_dropout(net):
    class Dropout(nn.Dropout):
        def forward(self, x):
            return x * 3

    net.drop = Dropout(0.3)


def class_of_a_part(net):
    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x) + 1

    net.act.__class__ = Shifted


def taken_out(net):
    net.out = net.out[:2]


def put_in(net):
    net.out.append(nn.Linear(8, 8)).append(nn.ReLU()).append(nn.Dropout(0.5))


def compiled_part(net):
    net.act.compile(backend="eager")


def p_is_no_float(net):
    net.drop.p = torch.tensor(0.3)


def p_is_a_parameter(net):
    del net.drop.p
    net.drop.p = nn.Parameter(torch.tensor(0.3), requires_grad=False)


def slope_is_a_parameter(net):
    net.act = nn.LeakyReLU(0.2)
    del net.act.negative_slope
    net.act.negative_slope = nn.Parameter(torch.tensor(0.3), requires_grad=False)


def slope_is_no_number(net):
    net.act = nn.LeakyReLU(float("nan"))


CHANGES = [
    *(flags, probability, monte_carlo, forward_of_the_instance, other_module, own_dropout),
    *(class_of_a_part, taken_out, put_in, compiled_part, p_is_no_float, p_is_a_parameter),
    *(slope_is_a_parameter, slope_is_no_number),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_after_it_was_fused(kernels, change):
    net = Net()
    new = fuse(net)
    for model in (net, new):
        torch.manual_seed(0)
        change(model)
    assert_same(net, new, X)
    assert_same(net.eval(), new.eval(), X)


def test_functions_that_others_replace(kernels, monkeypatch):
    new = fuse(Net())
    with monkeypatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", lambda self, x: x + 1)
        patch.setattr(F, "leaky_relu", lambda x, slope: x + 1)
        assert runs(kernels, new, X)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", lambda x, *args, **kwargs: x)
        assert runs(kernels, new, X)[0] == 0
    assert runs(kernels, new, X)[0] == PAIRS

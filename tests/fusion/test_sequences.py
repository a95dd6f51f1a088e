"""Pairs in `nn.Sequential`, which are decided while it runs."""

import copy

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, check
from torch import nn

from fusedact import fuse, fusion_report


def linear():
    return nn.Linear(8, 8)


@pytest.mark.parametrize("p", [0, 0.3, 1])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(2.0)])
def test_neighbours(kernels, act, inplace, p):
    act = copy.deepcopy(act)
    act.inplace = inplace and not isinstance(act, nn.ELU)  # whose gradient is then of its output
    check(kernels, nn.Sequential(linear(), act, nn.Dropout(p), linear()), X, fused=1, runs=int(0 < p < 1))


def test_any_depth_and_across_containers(kernels):
    class Own(nn.Sequential):
        """A subclass that doesn't change how it is called."""

    def block(*after):
        return Own(linear(), nn.Sequential(nn.ReLU(), *after))

    net = nn.Sequential(block(nn.Dropout(0.2)), block(), nn.Dropout(0.4), nn.Sequential(nn.ReLU()))
    new = check(kernels, nn.Sequential(*net, nn.Sequential(nn.Identity(), nn.Dropout(0.1))), X, fused=3)
    assert [pair.path for pair in fusion_report(new).fused] == ["0.1.1", "2", "4.1"]
    net = nn.ModuleDict({"a": nn.Sequential(block(nn.Dropout(0.2)))})
    assert [pair.path for pair in fusion_report(fuse(net)).fused] == ["a.0.1.1"]


def test_in_place_across_containers(kernels):
    net = nn.Sequential(nn.Sequential(linear()), nn.Sequential(nn.ReLU(True)), nn.Dropout(0.2))
    check(kernels, net, X, fused=1)
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(True)), nn.Dropout(0.2), linear())
    check(kernels, nn.Sequential(linear(), net), X, fused=0, left=1)


def test_identity_between(kernels):
    check(kernels, nn.Sequential(linear(), nn.ReLU(), nn.Identity(), nn.Dropout(0.3)), X, fused=1)


def test_dropout_first(kernels):
    check(kernels, nn.Sequential(linear(), nn.Dropout(0.3), nn.ReLU(), linear()), X, fused=1)
    check(kernels, nn.Sequential(linear(), nn.Dropout(0.3), nn.ReLU(True), linear()), X, fused=1)
    # Of two pairs with a module in common one runs fused.
    net = nn.Sequential(linear(), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.2))
    check(kernels, net, X, fused=1)
    for act in (nn.LeakyReLU(), nn.ELU(), nn.ReLU6()):
        check(kernels, nn.Sequential(linear(), nn.Dropout(0.3), act, linear()), X, fused=0)


def test_numbers_are_drawn_in_order(kernels):
    net = nn.Sequential(linear(), nn.Dropout(0.3), nn.Identity(), nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.2))
    check(kernels, net, X, fused=1)


def test_hook_on_a_container_sees_what_it_saw(kernels):
    inner = nn.Sequential(linear(), nn.ReLU())
    inner.register_forward_hook(lambda module, inputs, output: output + 1)
    new = check(kernels, nn.Sequential(inner, nn.Dropout()), X, fused=0, left=1)
    assert fusion_report(new).left[0].reason == "hooks on Sequential"


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_that_replaces_what_comes_next(kernels, kind):
    net = nn.Sequential(linear(), nn.ReLU(), nn.Dropout(0.3))
    new = fuse(net)
    for model in (net, new):

        def replace(*_, model=model):
            model[2] = nn.Dropout(0.9)

        getattr(model[1], kind)(replace)
    assert_same(net, new, X)
    assert not kernels


def test_called_by_code_that_drops(kernels):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(linear(), nn.Sequential(nn.ReLU()))

        def forward(self, x):
            return F.dropout(self.block(x), 0.3, self.training)

    check(kernels, Net(), X, fused=1)


def test_called_by_code_that_activates(kernels):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = linear(), nn.ReLU(inplace=True)
            inner = nn.Sequential(nn.Identity(), nn.Dropout(0.3))
            self.head = nn.Sequential(nn.Identity(), inner, linear(), nn.Dropout(0.2))

        def forward(self, x):
            x = self.head(F.elu(x))
            x = self.fc(x)
            x = self.act(x)
            return F.relu(self.head(x))

    new = check(kernels, Net(), X, fused=3)
    assert [pair.pair for pair in fusion_report(new).fused] == [
        "F.elu -> self.head",
        "self.act -> self.head",
        "self.head -> F.relu",
    ]


def test_one_container_in_two_places(kernels):
    inner = nn.Sequential(linear(), nn.ReLU())
    check(kernels, nn.Sequential(inner, nn.Dropout(0.3), inner, inner, nn.Dropout(0.2)), X, fused=2)


def test_subclasses(kernels):
    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    check(kernels, Twice(linear(), nn.ReLU(), nn.Dropout(0.3)), X, fused=1, runs=2)

    class Last(nn.Sequential):
        def __iter__(self):
            return iter([*self._modules.values()][:2])

    net = Last(linear(), nn.ReLU(), nn.Dropout(0.3))
    new = fuse(net)
    assert_same(net, new, X)
    assert not kernels


class SubReLU(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


class SubDropout(nn.Dropout):
    pass


def hooked(module, kind="register_forward_hook"):
    getattr(module, kind)(lambda *args: None)
    return module


def with_forward(module):
    module.forward = lambda x: x * 2
    return module


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ((nn.ReLU(), nn.Dropout2d()), "no fused kernel for Dropout2d"),
        ((nn.ReLU(), nn.Dropout1d()), "no fused kernel for Dropout1d"),
        ((nn.ReLU(), nn.AlphaDropout()), "no fused kernel for AlphaDropout"),
        ((nn.ReLU(), nn.FeatureAlphaDropout()), "no fused kernel for FeatureAlphaDropout"),
        ((nn.PReLU(), nn.Dropout()), "no fused kernel for PReLU"),
        ((SubReLU(), nn.Dropout()), "SubReLU is a subclass of ReLU"),
        ((nn.ReLU(), SubDropout()), "SubDropout is a subclass of Dropout"),
        ((hooked(nn.ReLU()), nn.Dropout()), "hooks on ReLU"),
        ((nn.ReLU(), hooked(nn.Dropout())), "hooks on Dropout"),
        ((with_forward(nn.ReLU()), nn.Dropout()), "forward of this ReLU was replaced"),
        ((nn.Identity(), nn.ReLU(inplace=True), nn.Dropout()), "works in place, on a tensor that others"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(type(m).__name__ for m in value),
)
def test_left(kernels, modules, reason):
    net = nn.Sequential(linear(), nn.Identity(), *modules)
    x = X[:, :, None].requires_grad_() if "Dropout1d" in reason else X
    new = fuse(net) if x is not X else check(kernels, net, x, fused=0, left=1)
    (pair,) = fusion_report(new).left
    assert reason in pair.reason


@pytest.mark.parametrize("modules", [(nn.Softmax(-1), nn.Dropout()), (nn.Dropout(), nn.GELU()), (nn.ReLU(),)])
def test_no_pair_is_not_reported(kernels, modules):
    report = fusion_report(fuse(nn.Sequential(*modules)))
    assert not report.fused
    assert not report.left


def test_empty_and_keywords(kernels):
    net = nn.Sequential(nn.Sequential(), linear(), nn.ReLU(), nn.Dropout(0.3))
    new = fuse(net)
    torch.manual_seed(1)
    expected = net(input=X)
    torch.manual_seed(1)
    assert torch.equal(new(input=X), expected)
    assert len(kernels) == 1
    assert torch.equal(fuse(nn.Sequential())(X), X)

"""Code in which a call that is put off, or looked at carelessly, would show."""

import contextlib
import types

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, check
from nets import Base
from torch import nn

from fusedact import fuse, fusion_report


class Twice(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x) * 2


class Shows:
    """Each computes what its plain form does."""

    class FailsAfterTheDropout(Base):
        def forward(self, x):
            try:
                h = self.act(self.fc(x))
                h = self.drop(h).view(3, 3)
            except RuntimeError:
                pass
            return h

    class FailsInTheDropout(Base):
        def forward(self, x):
            h = self.fc(x)
            with contextlib.suppress(ValueError):
                h = F.leaky_relu(h)
                h = F.dropout(h, 1.5, self.training)
            return h

    class GlobalInTry(Base):
        """A name of another scope must stay one."""

        def forward(self, x):
            def block():
                return self.drop(self.act(h))

            h = self.fc(x)
            try:
                y = self.drop(self.act(X)) + block()
            finally:
                self.seen = 1
            return y

    class LeavesALoop(Base):
        def forward(self, x):
            def leave(x):
                raise KeyError

            try:
                for layer in [self.fc, leave]:
                    x = layer(x)
            except KeyError:
                pass
            return x

    class OwnCall(Base):
        def __init__(self):
            super().__init__()
            self.block = Twice(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return self.drop(self.block(x))

    class AnotherSelf(Base):
        def forward(self, x):
            def block(self, x):
                return self.drop(F.relu(x))

            return block(types.SimpleNamespace(drop=self.drop), self.fc(x))

    class HookThatRemovesItself(Base):
        def forward(self, x):
            kept = []

            def hook(module, inputs, output):
                kept.append(output)
                handle.remove()

            handle = self.fc.register_forward_hook(hook)
            return self.drop(self.inplace(self.fc(x))) + kept[0]

    class WalrusThatMayRun(Base):
        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h) + (0 if self.flag else (h := 2))
            return y * h

    class WalrusInside(Base):
        """What is dropped is the activation's input."""

        def forward(self, x):
            y = self.act(h := self.fc(x))
            h = self.drop(h)
            return h + y

    class ComprehensionBetween(Base):
        """Its loop runs code of the list, which changes the activation's input."""

        def forward(self, x):
            class Rates(list):
                def __iter__(rates):  # noqa: N805
                    h.mul_(2)
                    return iter([0.3])

            rates = Rates()
            h = self.fc(x).detach()
            return F.dropout(F.relu(h), [rate for rate in rates][0], self.training)  # noqa: C416, RUF015

    class ArgumentNamedAsCalls(Base):
        def forward(self, _fusedact):
            return self.drop(self.act(self.fc(_fusedact)))

    class OwnGetattr(Base):
        forward = None  # below

    class ClassBody(Base):
        def forward(self, x):
            class Parts:
                h = self.act(self.fc(x))
                y = self.drop(h)

            return Parts.y + Parts.h

    class PropertyBetween(Base):
        @property
        def rate(self):
            self.z.mul_(2)
            return 0.3

        def forward(self, x):
            self.z = self.fc(x).detach()
            return F.dropout(F.relu(self.z), self.rate, self.training)

    class ArgumentNamedGetattr(Base):
        def forward(self, getattr):
            return self.drop(self.act(self.fc(getattr)))


def _with(getattr):
    def forward(self, x):
        return self.drop(self.act(self.fc(x))) + getattr(self, "p")

    return forward


Shows.OwnGetattr.forward = _with(lambda module, name: 1.0)


@pytest.mark.parametrize("cls", [c for c in vars(Shows).values() if isinstance(c, type)])
def test_same(kernels, cls):
    net = cls()
    assert_same(net, fuse(net), X)


@pytest.mark.parametrize("layers", ["relu", ["relu"]])
def test_a_string_is_not_callable(kernels, layers):
    class Net(Base):
        def __init__(self):
            super().__init__()
            self.name = "relu"

        def forward(self, x):
            if isinstance(layers, str):
                return self.drop(self.name(x))
            for layer in layers:
                x = layer(x)
            return x

    good = Net()
    good.name = nn.ReLU()
    fuse(good)
    for model in (Net(), fuse(Net())):
        with pytest.raises(TypeError, match="'str' object is not callable"):
            model(X)


def test_functional_replaced(kernels, monkeypatch):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3))
    new, old = fuse(net), F.relu
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: old(x) + 1)
    assert_same(net, new, X)
    assert_same(net, fuse(net), X)
    assert not kernels


class Reported:
    """`want`: the numbers of pairs that are fused and left, and `runs` of those that run fused."""

    class NotInPlace(Base):
        want = 1, 0

        def forward(self, x):
            return self.drop(F.relu(x * 1, inplace=False))

    class LoopsOfOneName(Base):
        want = 2, 0

        def __init__(self):
            super().__init__()
            self.a = nn.ModuleList([nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2)])

        def forward(self, x):
            for layer in self.a:
                x = layer(x)
            for layer in self.a:
                x = layer(x)
            return x

    class LoopOverATuple(Base):
        want = 1, 0

        def forward(self, x):
            for layer in (self.fc, self.act, self.drop):
                x = layer(x)
            return x

    class LoopOverAList(Base):
        want = 1, 0

        def forward(self, x):
            for layer in [self.fc, self.act, self.drop]:
                x = layer(x)
            return x

    class PropertyBefore(Base):
        """It is looked up before the first of the two calls."""

        want = 1, 0

        @property
        def hidden(self):
            return self.fc(X)

        def forward(self, x):
            return self.drop(self.act(self.hidden)) * x

    class PrivateNames(Base):
        want = 1, 0

        def __init__(self):
            super().__init__()
            self.__one, self.__two = nn.ReLU(inplace=True), nn.Dropout(0.3)

        def forward(self, x):
            return self.__two(self.__one(self.fc(x)))

    class InputByName(Base):
        want = 1, 0

        def forward(self, x):
            return self.drop(input=self.act(self.fc(x)))

    class InPlaceInABranch(Base):
        want = 1, 1

        def forward(self, x):
            z = self.fc(x)
            h = self.inplace(self.fc(x)) if self.flag else self.inplace(z)
            h = self.drop(h)
            return h + z

    class Alias(Base):
        want = 1, 0

        def block(self, x):
            return self.drop(self.act(self.fc(x)))

        again = block

        def forward(self, x):
            return self.again(x)


@pytest.mark.parametrize("cls", [c for c in vars(Reported).values() if isinstance(c, type)])
def test_reported(kernels, cls):
    fused, left = cls.want
    check(kernels, cls(), X, fused=fused, left=left)


def test_forward_of_another_function():
    class Own(Base):
        def forward(self, x):
            return self.drop(self.act(x))

    net = Own()
    net.forward = types.MethodType(lambda self, x: self.fc(x), net)
    assert [pair.reason for pair in fusion_report(fuse(net)).left] == ["its forward was replaced"]


def test_a_dropout_that_one_instance_lacks(kernels):
    class Optional(Base):
        def forward(self, x):
            h = self.fc(x)
            try:
                h = self.act(h)
                h = self.drop(h)
            except TypeError:
                pass
            return h

    fuse(Optional())
    net = Optional()
    net.drop = None
    assert_same(net, fuse(net), X)


def test_a_hook_in_a_sequence_that_removes_itself(kernels):
    def step(model):
        kept = []

        def hook(module, inputs, output):
            kept.append(output)
            handle.remove()

        handle = model[0].register_forward_hook(hook)
        torch.manual_seed(1)
        return model(X) + kept[0]

    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.3))
    assert torch.equal(step(net), step(fuse(net)))


def test_another_call_of_a_module(kernels):
    class Shifted(nn.Sequential):
        def _call_impl(self, *args, **kwargs):
            return super()._call_impl(*args, **kwargs) + 1

    class Net(Base):
        def __init__(self):
            super().__init__()
            self.block = Shifted(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return self.drop(self.block(x))

    net = Net()
    assert_same(net, fuse(net), X)


@pytest.mark.parametrize("cls", [nn.ReLU, nn.Dropout])
def test_a_call_replaced_for_all(kernels, monkeypatch, cls):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3))
    new = fuse(net)
    monkeypatch.setattr(cls, "__call__", lambda self, x: nn.Module.__call__(self, x) + 1)
    assert_same(net, new, X)
    assert not kernels


def test_a_module_that_guards_its_attributes(kernels):
    class Guarded(Base):
        guarded = False

        def __setattr__(self, name, value):
            if self.guarded:
                raise AttributeError(name)
            super().__setattr__(name, value)

        def forward(self, x):
            return self.drop(self.act(x))

    net = Guarded()
    vars(net)["guarded"] = True
    fuse(net, inplace=True)

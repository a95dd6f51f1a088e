"""Code at the edges of what is followed."""

import pickle

import pytest
import torch.nn.functional as F
from compare import X, assert_same, check, runs
from nets import Base, Lone
from torch import nn

from fusedact import fuse, fusion_report


def helper(x):
    return x * 2


def the_global():
    return activated  # noqa: F821


def _closed():
    closed = F.rrelu

    class OfAClosure(Base):
        reason = "no fused kernel for rrelu"

        def forward(self, x):
            return self.drop(closed(self.fc(x)))

    return OfAClosure


class Left:
    """Each has a pair that must not run fused, for this reason."""

    OfAClosure = _closed()

    class AddedToAlone(Base):
        reason = "used again"

        def forward(self, x):
            h = F.leaky_relu(self.fc(x))
            y = self.drop(h)
            h += 1
            return y

    class Global(Base):
        reason = "used again"

        def forward(self, x):
            def block(x):
                global activated
                activated = self.act(self.fc(x))
                return self.drop(activated)

            return block(x) + the_global()

    class Locals(Base):
        reason = "used again"

        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h)
            return y + locals()["h"]

    class OwnGetattr(Base):
        reason = "looks variables up"

        def forward(self, x):
            y = self.drop(self.act(self.fc(x)))
            getattr = None  # noqa: A001, F841
            return y

    class Channels(Base):
        reason = "no fused kernel for feature_alpha_dropout"

        def forward(self, x):
            return F.feature_alpha_dropout(F.relu(self.fc(x)), 0.1, self.training)

    class HiddenByTheInstance(Base):
        reason = "no fused kernel for rrelu"

        def __init__(self):
            super().__init__()
            vars(self)["act"] = F.rrelu

        def forward(self, x):
            return self.drop(self.act(self.fc(x)))

    class InABoolean(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.act(self.fc(x))
            return self.flag and self.drop(h)

    class Property(Base):
        reason = "other code stands between"

        @property
        def dropout(self):
            return self.drop

        def forward(self, x):
            return self.dropout(F.relu(self.fc(x)))

    class Declares(Base):
        reason = "looks variables up"

        def forward(self, x):
            y = self.drop(self.act(self.fc(x)))
            global counted
            counted = 1
            return y

    class OfTheClass(Base):
        reason = "no fused kernel for rrelu"
        rr = staticmethod(F.rrelu)

        def forward(self, x):
            return self.drop(self.rr(self.fc(x)))

    class BeforeAnIdentityAndLater(Base):
        reason = "used again"

        def forward(self, x):
            h = self.leaky(self.fc(x))
            i = self.ident(h)
            return self.drop(i) + h


LEFT = [cls for cls in vars(Left).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", LEFT, ids=lambda cls: cls.__name__)
def test_left(kernels, cls):
    new = check(kernels, cls(), X, fused=0, left=1, runs=0)
    assert cls.reason in fusion_report(new).left[0].reason


class Fused:
    """Each has a pair that runs fused."""

    class NestedKeywords(Base):
        def forward(self, x):
            return F.dropout(F.relu(self.fc(x)), p=self.p, training=self.training)

    class Private(Base):
        def __init__(self):
            super().__init__()
            self.__drop, self.__act = nn.Dropout(0.3), nn.ReLU()

        def forward(self, x):
            h = self.__act(self.fc(x))
            return self.__drop(h)

    class FoundBeforeTheInput(Base):
        def forward(self, x):
            drops = iter(self.drops)
            return next(drops)(F.relu(self.fc(x)))

    class Negated(Base):
        def forward(self, x):
            h = self.leaky(self.fc(x))
            return -self.drop(h)


FUSED = [cls for cls in vars(Fused).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", FUSED, ids=lambda cls: cls.__name__)
def test_fused(kernels, cls):
    check(kernels, cls(), X, fused=1)


class NoPair:
    """Not in the report."""

    class LoopReadLater(Base):
        def forward(self, x):
            for layer in [self.fc, self.drop]:
                x = layer(x)
            return x * layer.p

    class LoopReadByALayer(Base):
        def forward(self, x):
            seen = []

            def look(y):
                seen.append(x)
                return y

            for layer in [self.fc, look, self.fc2]:
                x = layer(x)
            return x + sum(seen)

    class LoopOverACall(Base):
        def layers(self):
            yield lambda x: self.keep(x)
            yield self.leaky
            self.kept.mul_(-2)
            yield self.drop

        def keep(self, x):
            self.kept = self.fc(x).detach()
            return self.kept

        def forward(self, x):
            for layer in self.layers():
                x = layer(x)
            return x

    class LoopWithKeywords(Base):
        def forward(self, x):
            for layer in (F.leaky_relu, F.leaky_relu):
                x = layer(x, negative_slope=0.5)
            return x

    class LoopWithElse(Base):
        def forward(self, x):
            for layer in [self.fc, self.drop]:
                x = layer(x)
            else:
                x = x * 2
            return x

    class KeptForTheNextCall(Base):
        def forward(self, x):
            y = self.drop(getattr(self, "kept", x))
            self.kept = x
            y = y + self.drop(self.kept)
            self.kept = self.act(x)
            del self.kept
            return y

    class ReturnOfAFunctionInside(Base):
        def helper(self, x):
            def inner(y):
                return F.relu(y)

            return self.fc(inner(x))

        def forward(self, x):
            return self.drop(self.helper(x))

    class FunctionOfThatName(Base):
        def helper(self, x):
            return F.relu(x)

        def forward(self, x):
            return self.drop(helper(self.fc(x)))

    class OwnRelu(Base):
        def relu(self):
            return self.fc.weight

        def forward(self, x):
            return x + self.drop(self.relu()).sum()


NO_PAIR = [cls for cls in vars(NoPair).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", NO_PAIR, ids=lambda cls: cls.__name__)
def test_no_pair(kernels, cls):
    check(kernels, cls(), X, fused=0, left=0, runs=0)


def test_a_hook_on_the_identity_between(kernels):
    class Between(Base):
        def forward(self, x):
            return self.drop(self.ident(self.act(self.fc(x))))

    net = Between()
    new = fuse(net)
    for model in (net, new):
        model.ident.register_forward_hook(lambda module, inputs, output: output * 2)
    assert_same(net, new, X)
    assert not kernels


class Three(Base):
    def __init__(self, *parts):
        super().__init__()
        self.a, self.b, self.c = parts

    def forward(self, x):
        return self.c(self.b(self.a(self.fc(x))))


def test_one_call_in_two_roles(kernels):
    one = fuse(Three(nn.Flatten(), nn.ReLU(), nn.Dropout(0.3)))
    two = fuse(Three(nn.ReLU(), nn.Dropout(0.3), nn.Flatten()))
    for new in (one, two):
        assert len(fusion_report(new).fused) == 1
        assert runs(kernels, new, X)[0] == 1


def test_a_hook_replaces_a_lone_dropout(kernels):
    class Net(Base):
        def forward(self, x):
            h = self.fc(x)
            return self.drop(h)

    net = Net()
    new = fuse(net, lone_dropout=True)
    for model in (net, new):
        model.fc.register_forward_hook(lambda *_, model=model: setattr(model, "drop", nn.Dropout(0.9)))
    assert_same(net, new, X)


class Shared(Three):
    forward = Three.forward


def test_a_function_of_two_classes(kernels):
    fuse(Three(nn.ReLU(), nn.Dropout(0.3), nn.Flatten()))
    check(kernels, Shared(nn.ReLU(), nn.Dropout(0.3), nn.Flatten()), X, fused=1)


def test_an_argument_that_a_sequence_refuses(kernels):
    class Net(Base):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return self.drop(self.block(x, scale=2))

    for model in (Net(), fuse(Net())):
        with pytest.raises(TypeError, match="scale"):
            model(X)


def test_a_loaded_model_keeps_lone_dropouts(kernels):
    new = pickle.loads(pickle.dumps(fuse(Lone(), lone_dropout=True)))
    assert runs(kernels, new, X)[0] == 4


def test_a_pair_that_is_left_takes_no_call(kernels):
    class Net(Base):
        def forward(self, x):
            return self.act(self.drop(F.rrelu(self.fc(x))))

    check(kernels, Net(), X, fused=1, left=1)


def test_in_place_after_the_layer_of_the_container(kernels):
    net = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(True), nn.Dropout(0.2)))
    check(kernels, net, X, fused=1)

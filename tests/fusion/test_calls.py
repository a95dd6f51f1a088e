"""Pairs in the code of methods: where they run fused, and where the calls run as they are written."""

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, check
from torch import nn

from fusedact import fuse, fusion_report


class Base(nn.Module):
    """Parts for models of a few lines."""

    def __init__(self):
        super().__init__()
        self.fc, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.act, self.drop, self.p = nn.ReLU(), nn.Dropout(0.3), 0.2
        self.leaky, self.inplace, self.ident = nn.LeakyReLU(0.2), nn.ReLU(inplace=True), nn.Identity()
        self.drops = nn.ModuleList([nn.Dropout(0.1), nn.Dropout(0.2)])
        self.parts = nn.ModuleDict({"act": nn.ELU(2.0), "drop": nn.Dropout(0.4)})
        self.function, self.flag = F.relu, True


class Fused:
    """Each runs fused in a training step as often as `runs` says; `pairs` is the number in the report."""

    class Modules(Base):
        def forward(self, x):
            return self.fc2(self.drop(self.act(self.fc(x))))

    class Statements(Base):
        def forward(self, x):
            """With words about it."""
            h = self.fc(x)
            h = self.act(h)
            h = self.drop(h)
            return self.fc2(h)

    class OtherNames(Base):
        def forward(self, x, mask=None):
            a = self.act(self.fc(x))
            b = self.drop(a)
            if mask is not None:
                b = b * mask
            return self.fc2(b)

    class Functions(Base):
        runs = pairs = 2

        def forward(self, x):
            x = F.dropout(F.relu(self.fc(x)), 0.4, self.training)
            x = F.leaky_relu(self.fc2(x), negative_slope=0.3)
            return self.fc(F.dropout(x, training=self.training, p=self.p))

    class Torch(Base):
        runs = pairs = 3

        def forward(self, x):
            x = torch.dropout(torch.relu(self.fc(x)), 0.4, self.training)
            x = torch.dropout(input=F.relu(input=self.fc(x)), p=0.4, train=self.training)
            return self.drop(self.fc(x).relu())

    class Keywords(Base):
        def forward(self, x):
            return F.dropout(training=self.training, p=self.p, input=F.elu(alpha=0.5, input=self.fc(x)))

    class AlwaysOn(Base):
        def forward(self, x):
            return self.fc2(F.dropout(F.relu(self.fc(x)), 0.5))

        runs_in_eval = True

    class Attribute(Base):
        def forward(self, x):
            return self.fc2(self.drop(self.function(self.fc(x))))

    class Tuple(Base):
        def forward(self, x):
            y, z = self.drop(F.relu(self.fc(x))), x
            return y + z

    class Loop(Base):
        runs, pairs = 3, 1

        def forward(self, x):
            for _ in range(3):
                x = self.drop(self.act(self.fc(x)))
                x = self.fc2(x)
            return x

    class LoopOverNames(Base):
        runs, pairs = 3, 1

        def forward(self, x):
            for _ in range(3):
                h = self.act(self.fc(x))
                h = self.drop(h)
                x = self.fc2(h)
            return x

    class Branches(Base):
        runs, pairs = 1, 2

        def forward(self, x):
            x = self.fc(x)
            if x.shape[0] > 2 and self.training:
                x = self.drop(self.act(x))
            else:
                try:
                    x = self.act(x)
                    x = self.drop(x)
                finally:
                    pass
            return self.fc2(x)

    class ActivationInABranch(Base):
        runs, pairs = 2, 3

        def forward(self, x):
            x = self.fc(x)
            if self.act is not None:
                x = self.act(x)
            x = self.drop(x)
            h = self.fc(x)
            if not self.flag:
                h = self.act(h)
            elif self.training:
                h = self.leaky(h)
            return self.drop(h) + x

    class SetAnew(Base):
        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h)
            if not self.flag:
                return y
            h = self.fc2(y)
            return h + 1

    class Helper(Base):
        def forward(self, x):
            return self.block(x)

        def block(self, x, *, scale=2):
            return self.fc2(self.drop(self.act(self.fc(x)))) * scale

    class Super(Modules):
        runs = pairs = 2

        def forward(self, x):
            return F.dropout(F.leaky_relu(super().forward(x)), 0.1, self.training)

    class ByClass(Modules):
        runs = pairs = 2

        def forward(self, x):
            return F.dropout(F.leaky_relu(Fused.Modules.forward(self, x)), 0.1, self.training)

    class Private(Base):
        def __init__(self):
            super().__init__()
            self.__scale = 3

        def forward(self, x, *, scale=None):
            x = self.drop(F.relu(self.fc(x)))
            return self.fc2(x) * (self.__scale if scale is None else scale)

    class Nested(Base):
        runs = pairs = 2

        def forward(self, x):
            return F.dropout(F.relu(self.fc2(self.drop(self.act(self.fc(x))))), 0.2, self.training)

    class Annotated(Base):
        def forward(self, x):
            h: torch.Tensor = self.act(self.fc(x))
            h = self.drop(h)
            return self.fc2(h)

    class Items(Base):
        runs = pairs = 3

        def forward(self, x):
            x = self.parts["drop"](self.parts["act"](self.fc(x)))
            x = self.drops[0](F.relu(self.fc(x)))
            return self.drops[-1](F.relu(self.fc(x)))

    class Index(Base):
        runs, pairs = 2, 1

        def forward(self, x):
            for i in range(2):
                x = self.drops[i](F.relu(self.fc(x)))
            return x

    class Zipped(Base):
        runs, pairs = 2, 1

        def forward(self, x):
            for i, (layer, drop) in enumerate(zip([self.fc, self.fc2], self.drops, strict=True)):
                x = drop(F.relu(layer(x))) + i
            return x

    class Local(Base):
        def forward(self, x):
            drop, act = self.drop, self.act
            return drop(act(self.fc(x)))

    class LocalAlone(Base):
        def forward(self, x):
            drop = self.drop
            act = getattr(self, "act")  # noqa: B009
            return drop(act(self.fc(x)))

    class Parameter(Base):
        def forward(self, x):
            return self.block(x, self.drop)

        def block(self, x, drop):
            return drop(F.relu(self.fc(x)))

    class Lambda(Base):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(
                lambda x: self.fc2(self.drop(F.relu(self.fc(x)))), x, use_reentrant=False
            )

        runs = 2  # forward runs again in backward

    class Comprehension(Base):
        runs, pairs = 2, 1

        def forward(self, x):
            return sum([self.drop(self.act(layer(x))) for layer in (self.fc, self.fc2)])

    class Generator(Base):
        runs, pairs = 2, 1

        def forward(self, x):
            return sum(self.each(x))

        def each(self, x):
            for layer in (self.fc, self.fc2):
                yield self.drop(self.act(layer(x)))

    class NestedFunction(Base):
        def forward(self, x):
            def block(x):
                h = self.act(self.fc(x))
                return self.drop(h)

            return block(x)

    class Nonlocal(Base):
        def forward(self, x):
            count = 0

            def block(x):
                nonlocal count
                count += 1
                return self.drop(self.act(self.fc(x)))

            return block(x) * count

    class Expression(Base):
        runs, pairs = 1, 1

        def forward(self, x):
            h = self.fc(x)
            return self.drop(self.act(h)) if self.flag else h

    class EitherActivation(Base):
        runs, pairs = 1, 2

        def forward(self, x):
            h = self.fc(x)
            return self.drop(self.act(h) if self.flag else self.leaky(h))

    class IdentityBetween(Base):
        def forward(self, x):
            return self.drop(self.ident(self.act(self.fc(x))))

    class IdentityBetweenStatements(Base):
        def forward(self, x):
            x = self.act(self.fc(x))
            x = self.ident(x)
            return self.drop(x)

    class InPlace(Base):
        runs = pairs = 3

        def forward(self, x):
            x = self.fc(x)
            x = F.relu(x, inplace=True)
            x = self.drop(x)
            x = self.drop(self.inplace(self.fc(x)))
            return self.drop(F.relu_(self.fc(x)))

    class DropoutFirst(Base):
        def forward(self, x):
            return F.relu(self.drop(self.fc(x)))

    class Property(Base):
        @property
        def hidden(self):
            return self.drop(self.act(self.fc(X)))

        def forward(self, x):
            return self.hidden + x

    class ComputedP(Base):
        def forward(self, x):
            return F.dropout(self.act(self.fc(x)), self.p / 2, self.training)

    class Read(Base):
        """Afterwards, under another name and value."""

        def forward(self, x):
            h = self.act(self.fc(x))
            h, y = self.drop(h), 1
            return h * y

    class Deleted(Base):
        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h)
            del h
            return y

    class InWith(Base):
        def forward(self, x):
            with torch.enable_grad():
                h = self.act(self.fc(x))
                h = self.drop(h)
            return h + x

    class Walk(Base):
        """A loop over modules of all kinds."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.ReLU(True), nn.Identity(), nn.Dropout(0.2)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    class EndsWithActivation(Base):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return self.drop(self.block(x))


FUSED = [cls for cls in vars(Fused).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", FUSED, ids=lambda cls: cls.__name__)
def test_fused(kernels, cls):
    pairs = getattr(cls, "pairs", 1)
    net = cls()
    if getattr(cls, "runs_in_eval", False):
        new = fuse(net)
        for training in (True, False):
            assert_same(net.train(training), new.train(training), X)
            assert len(kernels) == 1
            kernels.clear()
        return
    check(kernels, net, X, fused=pairs, runs=getattr(cls, "runs", pairs))


class Left:
    """Each has a pair that must not run fused, for this reason."""

    class UsedTwice(Base):
        reason = "used again"

        def forward(self, x):
            h = self.act(self.fc(x))
            return self.drop(h) + h

    class UsedTwiceLater(Base):
        reason = "used again"

        def forward(self, x):
            h = F.relu(self.fc(x))
            y = self.drop(h)
            return y * h

    class UsedInAClosure(Base):
        reason = "used again"

        def forward(self, x):
            h = F.relu(self.fc(x))
            later = lambda: h  # noqa: E731
            y = self.drop(h)
            return y + later()

    class UsedInFinally(Base):
        reason = "used again"

        def forward(self, x):
            h = self.fc(x)
            try:
                h = F.relu(h)
                return self.drop(h)
            finally:
                self.seen = h.sum().item()

    class UsedInHandler(Base):
        reason = "used again"

        def forward(self, x):
            h = self.fc(x)
            try:
                h = F.relu(h)
                h = self.drop(h)
                raise KeyError
            except KeyError:
                return h

        runs = 1

    class UsedInTheNextRound(Base):
        reason = "used again"

        def forward(self, x):
            h = x
            for _ in range(2):
                y = h + 1
                h = F.relu(self.fc(y))
                y = self.drop(h)
            return y

    class AddedTo(Base):
        reason = "used again"

        def forward(self, x):
            h = F.leaky_relu(self.fc(x))
            y = self.drop(h)
            h += 1
            return y + x * h

    class Walrus(Base):
        reason = "used again"

        def forward(self, x):
            return self.drop(h := self.act(self.fc(x))) + h

    class TwoNames(Base):
        reason = "used again"

        def forward(self, x):
            h = y = self.act(self.fc(x))
            h = self.drop(h)
            return h + y

    class Between(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.act(self.fc(x))
            x = F.dropout(x, 0.5, self.training)
            h = self.drop(h)
            return h + x

    class ChangedBetween(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.fc(x)
            y = self.act(h)
            h.mul_(2)
            return self.drop(y)

    class CallBefore(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.act(self.fc(x))
            return F.dropout(x, 0.5, self.training) + self.drop(h)

    class Conditional(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.act(self.fc(x))
            return self.drop(h) if self.flag else x

    class Kept(Base):
        reason = "kept where other code could see it"

        def forward(self, x):
            self.h = self.act(self.fc(x))
            y = self.drop(self.h)
            del self.h
            return y

    class InPlace(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            h = self.fc(x)
            return self.drop(self.inplace(h)) + h

    class InPlaceFunction(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            h = self.fc(x) * 2
            return self.drop(F.relu_(h)) + h

    class InPlaceOfAView(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            h = self.fc(x)
            return self.drop(F.relu(h.view(-1), inplace=True)).view(6, 8) + h

    class InPlaceAfterAViewer(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            h = self.fc(x)
            return self.drop(self.inplace(self.ident(h))) + h

    class Channels(Base):
        reason = "no fused kernel for Dropout2d"

        def __init__(self):
            super().__init__()
            self.drop2d = nn.Dropout2d()

        def forward(self, x):
            return self.drop2d(self.act(self.fc(x)[None, ..., None]))[0, ..., 0]

    class Alpha(Base):
        reason = "no fused kernel for alpha_dropout"

        def forward(self, x):
            return F.alpha_dropout(F.relu(self.fc(x)), 0.1, self.training)

    class Evaluates(Base):
        reason = "used again"

        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h)
            return y + eval("h")

    class OwnSelf(Base):
        reason = "has no self"

        def forward(self, x):
            y = self.drop(self.act(self.fc(x)))
            self = None
            return y


LEFT = [cls for cls in vars(Left).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", LEFT, ids=lambda cls: cls.__name__)
def test_left(kernels, cls):
    net = cls()
    new = check(kernels, net, X, fused=0, left=1, runs=0)
    assert cls.reason in fusion_report(new).left[0].reason

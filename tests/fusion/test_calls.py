"""Pairs in the code of methods, in all spellings of an activation and a dropout."""

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, check
from nets import Base, Lone
from torch import nn

from fusedact import fuse, fusion_report


def logged(value):
    return lambda function: function


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

    class Attribute(Base):
        def forward(self, x):
            return self.fc2(self.drop(self.function(self.fc(x))))

    class Tuple(Base):
        def forward(self, x):
            y, z = self.drop(F.relu(self.fc(x))), x
            return y + z

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
        runs = pairs = 2

        def forward(self, x):
            x = F.relu(self.drop(self.fc(x)))
            return F.relu(F.dropout(self.fc(x), self.p, self.training, self.flag is None))

    class InPlaceByPosition(Base):
        runs = pairs = 2

        def forward(self, x):
            x = self.drop(F.relu(self.fc(x), True))
            return F.relu(F.dropout(self.fc(x), self.p, self.training, True), False)

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

    class Around(Base):
        """Calls in decorators, annotations and defaults are no part of the body."""

        @logged(F.relu(X) if (given := X) is X else X)
        @logged(X)
        def forward(self, x, y=str(X), z: F.relu(X) = F.relu(X)):  # noqa: B008
            return self.drop(self.act(self.fc(x)))

    class EndsWithActivation(Base):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x):
            return self.drop(self.block(x))


@pytest.mark.parametrize("cls", [cls for cls in vars(Fused).values() if isinstance(cls, type)])
def test_fused(kernels, cls):
    pairs = getattr(cls, "pairs", 1)
    check(kernels, cls(), X, fused=pairs, runs=getattr(cls, "runs", pairs))


def test_always_on_dropout_before_relu(kernels):
    class AlwaysOn(Base):
        def forward(self, x):
            return F.relu(F.dropout(x, 0.5, True))

    net = AlwaysOn()
    assert_same(net, fuse(net), X)
    assert len(kernels) == 1
    assert not fusion_report(fuse(net)).left


class DropoutFirst(Base):
    def forward(self, x):
        return self.act(self.drop(self.fc(x)))


@pytest.mark.parametrize("lone", [True, False])
@pytest.mark.parametrize(
    "make", [DropoutFirst, lambda: nn.Sequential(nn.Dropout(0.3), nn.Identity(), nn.ReLU())]
)
def test_a_dropout_before_an_activation_is_no_lone_one(kernels, make, lone):
    net = make()
    assert_same(net, fuse(net, lone_dropout=lone), X)
    assert [name for name, *_ in kernels] == ["relu"]


def test_dropout_that_is_always_on(kernels):
    class AlwaysOn(Base):
        def forward(self, x):
            return self.fc2(F.dropout(F.relu(self.fc(x)), 0.5))

    net = AlwaysOn()
    new = fuse(net)
    for training in (True, False):
        assert_same(net.train(training), new.train(training), X)
        assert len(kernels) == 1
        kernels.clear()


def test_lone_dropout(kernels):
    net = Lone()
    assert_same(net, fuse(net, lone_dropout=True), X)
    assert [(name, p) for name, _, p in kernels] == [
        ("identity", 0.3),
        ("identity", 0.2),
        ("relu", 0.1),
        ("identity", 0.4),
    ]
    kernels.clear()
    fuse(net)(X)
    assert [name for name, *_ in kernels] == ["relu"]
    fuse(net, lone_dropout=True).eval()(X)
    assert len(kernels) == 1

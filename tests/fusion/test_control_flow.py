"""Pairs in loops, branches, nested functions, and over several names."""

import pytest
import torch
import torch.nn.functional as F
from compare import X, check
from nets import Base
from torch import nn


class Fused:
    """Each runs fused in a training step as often as `runs` says; `pairs` is the number in the report."""

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

    class InPlaceOfEither(Base):
        """Which of the two it is, only the run can tell: a layer's new tensor, or one that others read."""

        runs, pairs = 1, 1

        def forward(self, x):
            x, y = x * 1, 0
            for layer in (True, False):
                y += self.drop(self.inplace(self.fc(x.clone()) if layer else x))
            return y + x

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

    class WalkPart(Walk):
        def forward(self, x):
            for layer in self.layers[1:]:
                x = layer(x)
            return self.fc(x)

        def __init__(self):
            super().__init__()
            self.layers.insert(1, nn.Linear(8, 8))

    class Numbered(Base):
        """Indices that are keys."""

        def forward(self, x):
            parts = {1: self.fc, 0: self.drop}
            return self.numbered[0](self.numbered[1](parts[1](x)))

        def __init__(self):
            super().__init__()
            self.numbered = {1: F.leaky_relu, 0: self.drop}


@pytest.mark.parametrize("cls", [cls for cls in vars(Fused).values() if isinstance(cls, type)])
def test_fused(kernels, cls):
    pairs = getattr(cls, "pairs", 1)
    check(kernels, cls(), X, fused=pairs, runs=getattr(cls, "runs", pairs))

"""Calls that look like a pair and have to run as they are written, each with the reason in the report."""

import pytest
import torch
import torch.nn.functional as F
from compare import X, check
from nets import Base
from torch import nn

from fusedact import fuse, fusion_report


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

    class CallInAnArgument(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.fc(x)
            return F.dropout(F.relu(h), self.doubled(h), self.training)

        def doubled(self, h):
            with torch.no_grad():
                h.mul_(2)
            return 0.2

    class CallInAKeyword(CallInAnArgument):
        def forward(self, x):
            h = self.fc(x)
            y = F.relu(h)
            return F.dropout(y, training=self.training, p=self.doubled(h))

    class CallInACondition(CallInAnArgument):
        def forward(self, x):
            h = self.fc(x)
            y = F.relu(h)
            return self.drop(y if self.doubled(h) else h)

    class CallInAConditionOfAName(CallInAnArgument):
        def forward(self, x):
            h = self.fc(x)
            y = F.relu(h)
            y = y if self.doubled(h) else h
            return self.drop(y)

    class CallThatGivesTheDropout(Base):
        reason = "other code stands between"

        def forward(self, x):
            h = self.fc(x)
            y = F.relu(h)
            return self.dropout_for(h)(y)

        def dropout_for(self, h):
            with torch.no_grad():
                h.mul_(2)
            return self.drop

    class ActivationInABranch(Base):
        reason = "other code stands between"

        def forward(self, x):
            x = self.fc(x)
            if self.act is not None:
                x = self.act(x)
            x = self.drop(x)
            return x + 1

    class SetAnew(Base):
        """What stands in `h` later is another tensor, but that isn't followed."""

        reason = "used again"

        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h)
            h = self.fc2(y)
            return h + 1

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

    class InPlaceByPosition(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            h = self.fc(x) * 2
            return self.drop(F.relu(h, True)) + h

    class InPlaceDropoutFirst(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            h = self.fc(x) * 2
            return F.relu(F.dropout(h, self.p, self.training, True)) + h

    class InPlaceAfterInputsByName(Base):
        reason = "works in place, on a tensor that others may read"

        def __init__(self):
            super().__init__()
            self.both = nn.Bilinear(8, 8, 8)

        def forward(self, x):
            return self.drop(self.inplace(self.both(input1=x, input2=x)))

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

    class InPlaceAfterABranch(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            x = x * 1
            if len(x) > 100:
                h = self.fc(x)
            else:
                h, self.seen = x, 1
            h = self.inplace(h)
            h = self.drop(h)
            return h + x

    class InPlaceAfterAnIf(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            x = x * 1
            for i in range(2):
                h = x
                if i:
                    h = self.fc(x)
                h = self.drop(self.inplace(h))
            return h + x

    class InPlaceAfterTheNextLayer(Base):
        """What says which layer runs must run once."""

        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            layers = iter([self.fc, self.fc2])
            x = self.drop(self.inplace(next(layers)(x)))
            return next(layers)(x)

    class InPlaceAfterAnIndexThatMoves(Base):
        reason = "works in place, on a tensor that others may read"

        def forward(self, x):
            layers, numbers = nn.ModuleList([self.fc, self.fc2]), iter(range(2))
            x = self.drop(self.inplace(layers[next(numbers)](x)))
            return layers[next(numbers)](x)

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


def test_a_call_that_pytorch_refuses_is_refused(kernels):
    class Incomplete(nn.Module):
        def forward(self, x):
            return torch.dropout(torch.relu(x))

    for model in (Incomplete(), fuse(Incomplete())):
        with pytest.raises(TypeError, match="dropout"):
            model(X)

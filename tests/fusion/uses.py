"""Models whose code does more with their modules than call them."""

import functools

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.fc(x))))


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.which = Plain(), "act"


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.list = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())])
        self.one = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())


def act_alone(net, x):
    return net.act(x)


def first_two(sequence, x):
    return sequence[:2](x)


def with_act(method):
    @functools.wraps(method)
    def wrapper(self, x):
        return method(self, x) + self.act(x)

    return wrapper


class Used:
    """Each is a model that goes wrong if its modules are replaced as if nothing but the pair used them."""

    class Submodule(Plain):
        def forward(self, x):
            return self.drop(self.act(self.fc(x))) + self.get_submodule("act")(x)

    class GivenToAFunction(Plain):
        def forward(self, x):
            return self.drop(self.act(self.fc(x))) + act_alone(self, x)

    class Static(Plain):
        @staticmethod
        def alone(net, x):
            return net.act(x)

        def forward(self, x):
            return self.drop(self.act(self.fc(x))) + self.alone(self, x)

    class Decorated(Plain):
        forward = with_act(Plain.forward)

    class ByName(Parent):
        def forward(self, x):
            return self.block(x) + getattr(self.block, self.which)(x)

    class ByPath(Parent):
        def forward(self, x):
            return self.block(x) + self.get_submodule("block.act")(x)

    class Children(Parent):
        def forward(self, x):
            return self.block(x) + list(self.block.children())[1](x)

    class PartGivenToAFunction(Parent):
        def forward(self, x):
            return self.block(x) + act_alone(self.block, x)

    class SetByParent(Parent):
        def forward(self, x):
            self.block.act = nn.Tanh()
            return self.block(x)

    class SetByName(Parent):
        def forward(self, x):
            self.block.add_module("act", nn.Tanh())
            return self.block(x)

    class SetAsItem(Plain):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"act": nn.ReLU()})

        def forward(self, x):
            self.parts["act"] = nn.Tanh()
            return self.drop(self.parts["act"](self.fc(x)))

    class SetsP(Plain):
        def forward(self, x):
            self.drop.p = 0.9
            return self.drop(self.act(self.fc(x)))

    class SetsPByName(Parent):
        def forward(self, x):
            setattr(self.block.drop, "p", 0.9)  # noqa: B010
            return self.block(x)

    class SetsPOfAShared(Chain):
        def __init__(self):
            super().__init__()
            self.drop = self.one[2]

        def forward(self, x):
            self.drop.p = 0.9
            return self.one(x)

    class Frozen(Plain):
        def train(self, mode=True):
            super().train(mode)
            self.drop.eval()
            return self

    class FrozenByParent(Parent):
        def forward(self, x):
            self.block.drop.eval()
            return self.block(x)

    class HeldInAList(Plain):
        def __init__(self):
            super().__init__()
            self.parts = [self.drop]

        def forward(self, x):
            for part in self.parts:
                part.eval()
            return self.drop(self.act(self.fc(x)))

    class HeldInADict(Chain):
        def __init__(self):
            super().__init__()
            self.parts = {"drop": self.one[2]}

        def forward(self, x):
            return self.parts["drop"](self.one(x))

    class LooksForDropout(Parent):
        def forward(self, x):
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.train()
            return self.block(x)

    class HooksLater(Plain):
        def forward(self, x):
            handle = self.act.register_forward_hook(lambda module, inputs, output: output + 1)
            x = self.drop(self.act(self.fc(x)))
            handle.remove()
            return x

    class Evaluates(Plain):
        def forward(self, x):
            h = self.act(self.fc(x))
            y = self.drop(h)
            return y + eval("h")

    class OwnLookUp(Plain):
        def __getattr__(self, name):
            return super().__getattr__("gelu" if name == "act" else name)

        def __init__(self):
            super().__init__()
            self.gelu = nn.GELU()

    class OfTheClass(Plain):
        act = staticmethod(torch.tanh)

    class SetsPInASetter(Plain):
        @property
        def p(self):
            return self.drop.p

        @p.setter
        def p(self, value):
            self.drop.p = value

        def forward(self, x):
            self.p = 0.9
            return self.drop(self.act(self.fc(x)))

    class Cached(Plain):
        @functools.cached_property
        def activated(self):
            return self.act(self.fc.weight)

        def forward(self, x):
            return self.drop(self.act(self.fc(x))) + self.activated.sum()

    class Overridden(Plain):
        def block(self, x):
            return self.drop(F.relu(self.fc(x)))

        def forward(self, x):
            return self.block(x)

    class OverriddenAgain(Overridden):
        block = lambda self, x: self.fc(x)  # noqa: E731

    class OverriddenStatically(Overridden):
        block = staticmethod(torch.tanh)

    class OwnRelu(Plain):
        def relu(self):
            return self.fc.weight

        def forward(self, x):
            return x + self.drop(self.relu()).sum()

    class Walrus(Plain):
        def forward(self, x):
            return self.drop(h := self.act(self.fc(x))) + h

    class TwoNames(Plain):
        def forward(self, x):
            h = y = self.act(self.fc(x))
            h = self.drop(h)
            return h + y

    class OneOfTwo(Plain):
        def forward(self, x):
            return self.drop(self.fc(x) if self.training else self.act(self.fc(x)))

    class ChainGivenToAFunction(Chain):
        def forward(self, x):
            return self.one(x) + first_two(self.one, x)

    class ItemGivenToAFunction(Chain):
        def forward(self, x):
            for sequence in self.list:
                x = sequence(x) + first_two(sequence, x)
            return x

    class ItemIndexed(Chain):
        def forward(self, x):
            return self.list[0](x) + self.list[0][:2](x)

    class ItemIterated(Chain):
        def forward(self, x):
            for sequence in self.list:
                for layer in sequence[:2]:
                    x = layer(x)
            return x

    class CallsItsChildren(Parent):
        def forward(self, x):
            for child in self.block.children():
                x = child(x)
            return x

    class DropsAll(Plain):
        """Monte Carlo dropout, by the class's name."""

        def forward(self, x):
            for module in self.modules():
                if module.__class__.__name__.startswith("Dropout"):
                    module.train()
            return self.drop(self.act(self.fc(x)))

    class OwnTrain(Plain):
        def train(self, mode=True):
            self.training = mode
            for module in (self.fc, self.act, self.drop):
                module.train(mode)
            return self

    class SuperSequential(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(8, 8), nn.LayerNorm(8))

        def forward(self, x):
            return F.dropout(F.relu(super().forward(x)), 0.3, self.training)

    class LoopsOverItself(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 8))

        def forward(self, x):
            for module in self:
                x = module(x)
                if x.shape[0] > 100:
                    break
            return x

    class Slices(Chain):
        def forward(self, x):
            return self.one(x) + nn.Sequential(*list(self.one.children())[:2])(x) + self.one[1:](x)

    class ReplacesWhileItRuns(Plain):
        def forward(self, x):
            x = self.drop(self.act(self.fc(x)))
            self.act = nn.Tanh() if isinstance(self.act, nn.ReLU) else nn.ReLU()
            return self.drop(self.act(self.fc(x)))

    class HookChangesP(Plain):
        """The hook on the activation sets the p that the dropout reads after it."""

        def __init__(self):
            super().__init__()
            self.p = 0.1

        def forward(self, x):
            handle = self.act.register_forward_hook(lambda *_: setattr(self, "p", 0.9))
            x = F.dropout(self.act(self.fc(x)), self.p, self.training)
            handle.remove()
            self.p = 0.1
            return x

    class HookReplacesDropout(Plain):
        """The hook on the activation sets the dropout that the next statement calls."""

        def forward(self, x):
            kept = self.drop
            handle = self.act.register_forward_hook(lambda *_: setattr(self, "drop", nn.Dropout(0.9)))
            h = self.act(self.fc(x))
            h = self.drop(h)
            handle.remove()
            self.drop = kept
            return h

    class LookupThatCounts(Plain):
        """Each look at the attribute gives another function."""

        def __getattr__(self, name):
            if name != "drop":
                return super().__getattr__(name)
            self.__dict__["looks"] = self.__dict__.get("looks", 0) + 1
            return functools.partial(torch.mul, torch.tensor(float(self.looks)))

        def forward(self, x):
            h = self.act(self.fc(x))
            h = self.drop(h)
            return self.drop(self.act(h))

    class InPlaceTurnedOn(Plain):
        def forward(self, x):
            h = self.fc(x)
            self.act.inplace = True
            y = self.drop(self.act(h))
            return y + h

    class ProducerReplaced(Plain):
        """What was a layer when the model was fused gives back its input."""

        def __init__(self):
            super().__init__()
            self.layer, self.inplace = nn.Linear(8, 8), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.fc(x)
            self.layer = nn.Identity()
            return self.drop(self.inplace(self.layer(h))) + h

    class OwnLookup(Plain):
        def __getattr__(self, name):
            return torch.tanh if name == "act" else super().__getattr__(name)

    class LookupOfAll(Plain):
        def __getattribute__(self, name):
            return torch.tanh if name == "act" else super().__getattribute__(name)

    class HiddenByTheClass(Plain):
        act = staticmethod(torch.tanh)

    class HiddenByTheInstance(Plain):
        def __init__(self):
            super().__init__()
            vars(self)["act"] = torch.tanh

    class OfAnotherKind(Plain):
        """What was an activation when the model was fused adds two tensors."""

        class Both(nn.Module):
            def forward(self, pair):
                return pair[0] + pair[1]

        def forward(self, x):
            self.act = self.Both() if not isinstance(self.act, self.Both) else self.act
            return self.drop(self.act((self.fc(x), x)))


USED = [cls for cls in vars(Used).values() if isinstance(cls, type)]

"""Watched places: each watcher gets the inputs of its own pair."""

import torch.nn.functional as F
from compare import X
from nets import Base
from torch import nn

from fusedact import fuse
from fusedact.fusion import places


class One(Base):
    def forward(self, x):
        return self.drop(self.act(self.fc(x)))


class Other(Base):
    forward = One.forward


class Watcher:
    def __init__(self):
        self.n = 0

    def wants(self, training):
        return True

    def computes(self, row, values):
        self.row = row.name

    def __call__(self, input, plan=None):
        self.n += 1


def test_a_watcher_of_a_function_of_two_classes(kernels):
    fuse(One())
    new, watcher = fuse(Other()), Watcher()
    places(new)[0].watch(watcher)
    new(X)
    assert watcher.n == 1


def test_places_of_calls_of_sequences(kernels):
    class Net(Base):
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8))
            self.seq = nn.Sequential(nn.Dropout(0.3), nn.ReLU())

        def forward(self, x):
            x = self.head(F.elu(x))
            x = self.act(self.drop(self.fc(x)))
            return self.seq(x)

    new = fuse(Net())
    found = places(new)
    assert [place.row.name for place in found] == ["elu", "relu", "relu"]
    assert [place.activation for place in found] == [None, new.act, new.seq[1]]
    assert [place.module for place in found] == [new.head, new, new.seq]
    watchers = [Watcher() for _ in found]
    for place, watcher in zip(found, watchers, strict=True):
        place.watch(watcher)
    new(X)
    assert [watcher.n for watcher in watchers] == [1, 1, 1]


class Two(One):
    def forward(self, x):
        return self.drop(self.leaky(super().forward(x)))


def test_places_of_methods_of_one_name(kernels):
    new = fuse(Two())
    watchers = [Watcher() for _ in places(new)]
    assert len(watchers) == 2
    for place, watcher in zip(places(new), watchers, strict=True):
        place.watch(watcher)
    new(X)
    assert [watcher.n for watcher in watchers] == [1, 1]


def test_places_of_classes_of_one_name(kernels):
    class Net(Base):
        def forward(self, x):
            return self.drop(self.act(self.fc(x)))

    first = Net

    class Net(first):
        def forward(self, x):
            return self.drop(self.leaky(first.forward(self, x)))

    new = fuse(Net())
    watchers = [Watcher() for _ in places(new)]
    for place, watcher in zip(places(new), watchers, strict=True):
        place.watch(watcher)
    new(X)
    assert [watcher.n for watcher in watchers] == [1, 1]
    assert [watcher.row for watcher in watchers] == ["leaky_relu", "relu"]

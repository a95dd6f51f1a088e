"""Models that tests of several files fuse; at module level, so that they can be pickled."""

import torch.nn.functional as F
from torch import nn


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


class Net(nn.Module):
    """Three pairs: modules, functions, nn.Sequential."""

    def __init__(self, width=8):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.3)
        self.out = nn.Sequential(nn.Linear(width, 8), nn.ReLU(inplace=True), nn.Dropout(0.2))

    def forward(self, x, scale: float = 1.0):
        x = self.drop(self.act(self.fc(x)))
        x = F.dropout(F.leaky_relu(x, 0.2), 0.1, training=self.training)
        return self.out(x) * scale

    def clone(self):
        return type(self)(8)


PAIRS = 3


class Lone(nn.Module):
    """Dropouts of what no activation returned, and a pair."""

    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.3)
        self.seq = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x):
        h = self.drop(self.fc(x))
        return self.seq(h) + F.dropout(h, 0.4, self.training)

"""What `fuse` returns and refuses, the report, and the places that a monitor watches."""

import functools
import weakref

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, check
from torch import nn

import fusedact
from fusedact import fuse, fusion_report, unfuse
from fusedact.fusion import places


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)
        self.seq = nn.Sequential(nn.Linear(8, 8), nn.ELU(), nn.Dropout(0.2), nn.PReLU(), nn.Dropout(0.2))

    def forward(self, x):
        x = self.seq(self.drop(self.act(self.fc(x))))
        return F.dropout(F.leaky_relu(self.fc(x)), 0.1, self.training)


def test_report():
    report = fusion_report(fuse(Net()))
    assert [(pair.path, pair.pair, pair.reason) for pair in report.fused + report.left] == [
        ("", "self.act -> self.drop", ""),
        ("", "F.leaky_relu -> F.dropout", ""),
        ("seq.2", "ELU(alpha=1.0) -> Dropout(p=0.2)", ""),
        ("seq.4", "PReLU -> Dropout(p=0.2)", "no fused kernel for PReLU"),
    ]
    assert [pair.saves for pair in report.fused] == ["1 bit", "2 bits", "1 bit and the input"]
    assert str(report).splitlines() == [
        "(the model)  self.act -> self.drop             fused, keeps 1 bit",
        "(the model)  F.leaky_relu -> F.dropout         fused, keeps 2 bits",
        "seq.2        ELU(alpha=1.0) -> Dropout(p=0.2)  fused, keeps 1 bit and the input",
        "seq.4        PReLU -> Dropout(p=0.2)           no fused kernel for PReLU",
        "3 fused, 1 left",
    ]
    assert str(fusion_report(fuse(nn.Linear(2, 2)))) == "0 fused, 0 left"


class Activates(nn.Module):
    """Its last call is an activation, as far as there is one."""

    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), nn.SiLU()

    def forward(self, x):
        x = self.fc(x)
        if self.act is not None:
            x = self.act(x)
        return x


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.4)

    def forward(self, x):
        x = self.drop(x)
        return x * 2


def test_a_pair_in_two_methods_is_in_the_report(kernels):
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.drop = Activates(), Drops(), nn.Dropout(0.3)
            self.seq = nn.Sequential(Activates(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), Drops())
            self.without, self.without.act = Activates(), None
            self.layers = nn.ModuleList([Drops(), nn.Linear(8, 8)])

        def helper(self, x):
            return F.relu(x)

        def forward(self, x):
            x = self.drop(self.one(x))
            x = self.two(F.gelu(x))
            x = self.drop(self.helper(x))
            x = F.elu(self.drop(self.without(x)))
            for layer in self.layers:
                x = layer(x)
            return self.seq(self.one.act(x))

    new = check(kernels, Split(), X, fused=0, left=6)
    assert [(pair.path, pair.pair, pair.reason) for pair in fusion_report(new).left] == [
        ("", "self.one -> self.drop", "SiLU is called in another method, Activates.forward"),
        ("", "F.gelu -> self.two", "Dropout(p=0.4) is called in another method, Drops.forward"),
        ("", "self.helper -> self.drop", "relu is called in another method, Split.helper"),
        ("", "F.elu -> layer", "Dropout(p=0.4) is called in another method, Drops.forward"),
        ("seq.1", "SiLU -> Dropout(p=0.1)", "SiLU is called in another method, Activates.forward"),
        ("seq.4", "ReLU -> Dropout(p=0.4)", "Dropout(p=0.4) is called in another method, Drops.forward"),
    ]


def test_report_is_of_now():
    new = fuse(Net())
    handle = new.act.register_forward_hook(lambda *_: None)
    assert "hooks on ReLU" in str(fusion_report(new))
    handle.remove()
    assert "hooks on ReLU" not in str(fusion_report(new))
    new.seq = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())
    assert [pair.reason for pair in fusion_report(new).left] == ["it joined the model after that was fused"]
    assert not fusion_report(fuse(new)).left


def test_parts_and_twice(kernels):
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout()), nn.Linear(8, 8))
    fuse(net[0], inplace=True)
    assert len(fusion_report(fuse(net, inplace=True)).fused) == 1
    assert len(fusion_report(fuse(fuse(net))).fused) == 1
    assert_same(unfuse(fuse(net)), fuse(fuse(net)), X)
    assert len(kernels) == 1
    net = fuse(net)
    unfuse(net[0])
    assert [pair.reason for pair in fusion_report(net).left] == ["it joined the model after that was fused"]


def test_source_that_cannot_be_read(kernels):
    scope = {"nn": nn}
    exec(
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout()\n"
        "    def forward(self, x):\n"
        "        return self.drop(self.act(self.fc(x)))\n",
        scope,
    )
    new = check(kernels, scope["Net"](), X, fused=0, left=1)
    assert fusion_report(new).left[0].reason == "the source of Net.forward can't be read"


def test_source_that_is_not_what_runs(kernels, tmp_path):
    """The file has changed since it was imported."""
    path = tmp_path / "changed.py"
    source = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout()\n"
        "    def forward(self, x):\n"
        "        return self.drop(self.fc(self.act(x)))\n"
    )
    path.write_text(source.replace("self.drop(self.fc(self.act(x)))", "self.fc(self.drop(self.act(x)))"))
    scope = {}
    exec(compile(source, str(path), "exec"), scope)
    new = check(kernels, scope["Net"](), X, fused=0, left=1)
    assert fusion_report(new).left[0].reason == "the source of Net.forward can't be read"


def test_decorators(kernels):
    def logged(forward):
        @functools.wraps(forward)
        def wrapper(self, *args, **kwargs):
            seen.append(type(self).forward is wrapper)
            return forward(self, *args, **kwargs)

        return wrapper

    def hiding(forward):
        return lambda self, x: forward(self, x)

    seen = []

    class One(Net):
        @logged
        @torch.autocast("cpu", dtype=torch.bfloat16)
        def forward(self, x):
            return F.dropout(F.elu(self.fc(x)), 0.1, self.training)

    class Two(Net):
        @hiding
        def forward(self, x):
            return F.dropout(F.elu(self.fc(x)), 0.1, self.training)

    for cls in (One, Two):
        check(kernels, cls(), X, fused=2, left=1, runs=1)
    assert seen
    assert all(seen)


def test_a_forward_of_the_instance(kernels):
    net = Net()
    net.forward = lambda x: net.fc(x)
    report = fusion_report(fuse(net, inplace=True))
    assert [pair.reason for pair in report.left if not pair.path] == ["its forward was replaced"]
    # One that calls the old, as accelerate's does, changes nothing.
    net = Net()
    net.forward = functools.update_wrapper(lambda x, old=net.forward: old(x) + 1, net.forward)
    assert not [pair for pair in fusion_report(fuse(net, inplace=True)).left if not pair.path]
    net(X)
    assert len(kernels) == 3


@pytest.mark.parametrize(
    ("model", "got"), [(None, "NoneType"), (F.relu, "function"), (nn.ReLU, "type; pass an instance")]
)
def test_no_module(model, got):
    for function in (fuse, unfuse, fusion_report, places):
        with pytest.raises(TypeError, match=f"model must be a torch.nn.Module, but got {got}"):
            function(model)


def test_bad_arguments():
    with pytest.raises(TypeError, match="inplace=1: it must be True or False"):
        fuse(nn.Linear(2, 2), 1)
    with pytest.raises(TypeError, match="lone_dropout='no': it must be True or False"):
        fuse(nn.Linear(2, 2), lone_dropout="no")


def test_what_was_not_fused():
    for function in (unfuse, fusion_report, places):
        with pytest.raises(ValueError, match=r"fusedact\.fuse returned, but this Sequential isn't fused"):
            function(nn.Sequential(nn.ReLU(), nn.Dropout()))
    nothing = fuse(nn.Linear(2, 2))
    assert unfuse(nothing) is nothing
    with pytest.raises(ValueError, match="isn't fused"):
        unfuse(nothing)


def test_a_model_that_cannot_be_copied():
    net = Net()
    net.other = net.fc(X)
    with pytest.raises(ValueError, match=r"copy.deepcopy can copy, .*Call fuse\(model, inplace=True\)"):
        fuse(net)
    fuse(net, inplace=True)


# Places ------------------------------------------------------------------------------------------------


class Watcher:
    def __init__(self, modes=(True, False)):
        self.modes, self.seen = modes, []

    def wants(self, training):
        return training in self.modes

    def computes(self, row, values):
        self.row = row.name

    def __call__(self, input, plan=None):
        self.seen.append(input.clone())


def test_places():
    new = fuse(Net())
    assert [(place.name, place.path, place.row.name) for place in places(new)] == [
        ("forward: self.act -> self.drop", "", "relu"),
        ("forward: F.leaky_relu -> F.dropout", "", "leaky_relu"),
        ("seq.1-2", "seq", "elu"),
    ]
    assert [place.activation for place in places(new)] == [new.act, None, new.seq[1]]

    class Twice(Net):
        def forward(self, x):
            return self.drop(self.act(self.drop(self.act(x))))

    names = [place.name for place in places(fuse(nn.ModuleDict({"a": Twice()})))]
    assert names[:2] == ["a.forward: self.act -> self.drop [1]", "a.forward: self.act -> self.drop [2]"]


@pytest.mark.parametrize("takes", [True, False], ids=["kernels", "no kernels"])
def test_a_watched_pair_stays_fused(kernels, monkeypatch, takes):
    if not takes:
        monkeypatch.undo()
    net = Net()
    new = fuse(net)
    inputs = []
    for module in (net.act, net.seq[1]):
        module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    watchers = [Watcher() for _ in places(new)]
    ends = [place.watch(watcher) for place, watcher in zip(places(new), watchers, strict=True)]
    assert_same(net, new, X)
    assert len(kernels) == (3 if takes else 0)
    assert torch.equal(watchers[0].seen[0], inputs[0])
    assert torch.equal(watchers[2].seen[0], inputs[1])
    assert [len(watcher.seen) for watcher in watchers] == [1, 1, 1]
    assert [watcher.row for watcher in watchers] == ["relu", "leaky_relu", "elu"]
    new.eval()(X)
    assert [len(watcher.seen) for watcher in watchers] == [2, 2, 2]
    # Copies aren't watched; nor is the model when it ends, nor is anything left of the watchers.
    import copy
    import pickle

    copy.deepcopy(new)(X), pickle.loads(pickle.dumps(new))(X)
    for end in ends:
        end(), end()
    new(X)
    assert [len(watcher.seen) for watcher in watchers] == [2, 2, 2]
    gone = weakref.ref(watchers.pop())
    del end, ends
    assert gone() is None


def test_watchers_choose_modes(kernels):
    new = fuse(Net())
    watcher, other = Watcher([True]), Watcher([False])
    places(new)[0].watch(watcher)
    places(new)[0].watch(other)
    new(X), new.eval()(X), new(X)
    assert (len(watcher.seen), len(other.seen)) == (1, 2)
    place = places(new)[0]
    unfuse(new)
    with pytest.raises(ValueError, match=r"fused while place 'forward: self.act -> self.drop' is watched"):
        place.watch(watcher)


def test_exports():
    assert {"FusionReport", "Pair", "fuse", "fusion_report", "unfuse"} <= set(fusedact.__all__)

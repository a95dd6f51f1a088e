"""Copies, files and other processes: what is fused stays fused, and nothing else becomes it."""

import copy
import multiprocessing
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, assert_unchanged, runs
from nets import PAIRS, Net
from torch import nn

import fusedact
from fusedact import fuse, unfuse


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), lambda net: net],
    ids=["copy", "deepcopy", "pickle", "itself"],
)
def test_copies_run_fused(kernels, again):
    net = Net()
    new = again(fuse(net))
    assert_same(net, new, X)
    assert_unchanged(net, new)
    assert runs(kernels, new, X)[0] == PAIRS
    unfuse(new)
    assert runs(kernels, new, X)[0] == 0


def test_unfuse_of_a_copy_leaves_the_original(kernels):
    new = fuse(Net())
    unfuse(copy.deepcopy(new))
    assert runs(kernels, new, X)[0] == PAIRS
    # A shallow copy has the same children, but its own code.
    shallow = copy.copy(new)
    unfuse(shallow)
    assert runs(kernels, new, X)[0] == PAIRS - 1


def test_made_anew(kernels):
    new = fuse(Net())
    for other in (type(new)(8), new.clone()):
        other.load_state_dict(new.state_dict())
        assert_same(other, new, X)
        assert runs(kernels, other, X)[0] == 0
    assert type(new) is Net


def child(connection, blob):
    sys.path.insert(0, str(__file__).rpartition("/")[0])
    from fusedact.fusion import recognise

    calls = []

    def by_kernels(row, x, values, p, *_):
        calls.append(row.name)
        return F.dropout(row.function(x, *values), p)

    recognise.by_kernels = by_kernels
    torch.manual_seed(1)
    model = pickle.loads(blob)
    connection.send((len(calls), model(X).tolist(), len(calls)))


def test_pickle_under_spawn():
    new = fuse(Net())
    torch.manual_seed(1)
    expected = new(X)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, pickle.dumps(new)))
    process.start()
    before, output, after = here.recv()
    process.join()
    assert (before, after) == (0, PAIRS)
    assert torch.equal(torch.tensor(output), expected)


def test_loaded_where_the_source_is_another(kernels):
    new = fuse(Net())
    calls = new._non_persistent_buffers_set.fusedact
    calls.code = tuple(change._replace(checksum=change.checksum + 1) for change in calls.code)
    loaded = pickle.loads(pickle.dumps(new))
    assert_same(new, loaded, X)


def test_state_dict(tmp_path):
    net = Net()
    new = fuse(net)
    torch.save(new.state_dict(), tmp_path / "state.pt")
    path = str(tmp_path / "state.pt")
    code = f"import sys, torch; torch.load({path!r}); assert 'fusedact' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    net.load_state_dict(new.state_dict())


def test_replicas_of_data_parallel(kernels):
    net = Net()
    new = fuse(net)
    replica = new._replicate_for_data_parallel()
    replica.fc = nn.Linear(8, 8)
    replica.out = new.out
    with torch.no_grad():
        replica.fc.weight.zero_(), replica.fc.bias.fill_(1)
    torch.manual_seed(1)
    count, output = runs(kernels, replica, X)
    assert count == PAIRS
    plain = copy.deepcopy(net)
    with torch.no_grad():
        plain.fc.weight.zero_(), plain.fc.bias.fill_(1)
    torch.manual_seed(1)
    assert torch.equal(plain(X), output)


def test_shared_parts(kernels):
    act, drop = nn.ReLU(), nn.Dropout(0.3)
    net = nn.Sequential(nn.Linear(8, 8), act, drop, nn.Linear(8, 8), act, nn.Linear(8, 8), drop, act, drop)
    new = fuse(net)
    assert new[1] is new[4] is new[7]
    assert_same(net, new, X)
    assert runs(kernels, new, X)[0] == 2


def test_optimiser_keeps_its_parameters():
    net = Net()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    parameters = list(net.parameters())
    assert fuse(net, inplace=True) is net
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    before = net.fc.weight.clone()
    net(X).sum().backward()
    optimiser.step()
    assert not torch.equal(net.fc.weight, before)


def test_other_instances_run_as_written(kernels):
    one = Net()
    fuse(Net())
    assert runs(kernels, one, X)[0] == 0
    assert runs(kernels, nn.Sequential(nn.ReLU(), nn.Dropout()), X)[0] == 0


def test_functions_stay_what_they_are():
    import inspect

    before = Net.forward, inspect.signature(Net.forward), inspect.getsource(Net.forward)
    fuse(Net())
    assert (Net.forward, inspect.signature(Net.forward), inspect.getsource(Net.forward)) == before
    assert nn.Sequential.forward.__qualname__ == "Sequential.forward"


def test_errors_name_the_line():
    new = fuse(Net())
    with pytest.raises(RuntimeError) as caught:
        new(torch.zeros(3, 3))
    import traceback

    lines = [frame.line for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "x = self.drop(self.act(self.fc(x)))" in lines


def test_buffers_that_are_not_stored(kernels):
    net = Net()
    net.register_buffer("kept", torch.ones(1), persistent=False)
    new = fuse(net)
    assert "kept" not in new.state_dict()
    new.register_buffer("other", torch.ones(1), persistent=False)
    assert "other" not in new.state_dict()
    unfuse(new)
    assert "other" not in new.state_dict()
    assert fusedact.fuse is fuse

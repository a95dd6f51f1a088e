"""Models that several threads fuse, and shallow copies, which share more than deep ones."""

import copy
import threading
import time

import pytest
import torch.nn.functional as F
from compare import X, assert_same
from torch import nn

from fusedact import fuse, fusion_report
from fusedact.fusion import places, source
from fusedact.observer import Observer


def in_threads(*functions):
    """Their results; all start at once."""
    results = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(i):
        barrier.wait()
        results[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_fused_by_several_threads(kernels, monkeypatch):
    """Their instances of one class have pairs in other places."""

    class Net(nn.Module):
        def __init__(self, one, other):
            super().__init__()
            self.fc, self.one, self.other, self.drop = nn.Linear(8, 8), one, other, nn.Dropout(0.3)

        def forward(self, x):
            x = self.drop(self.one(self.fc(x)))
            return self.drop(self.other(self.fc(x)))

    compile_file = source._compile

    def slow(*args):
        time.sleep(0.05)  # so that the others come in
        return compile_file(*args)

    monkeypatch.setattr(source, "_compile", slow)
    softmax = nn.Softmax(-1)
    nets = [Net(nn.ReLU(), softmax), Net(softmax, nn.ReLU()), Net(nn.ReLU(), nn.ReLU())]
    fused = in_threads(*[lambda net=net: fuse(net) for net in nets])
    reports = in_threads(*[lambda new=new: fusion_report(new) for new in fused])
    assert [(len(report.fused), len(report.left)) for report in reports] == [(1, 0), (1, 0), (2, 0)]
    for net, new, pairs in zip(nets, fused, (1, 1, 2), strict=True):
        kernels.clear()
        assert_same(net, new, X)
        assert len(kernels) == pairs


@pytest.mark.parametrize("shallow", [copy.copy, lambda net: net._replicate_for_data_parallel()])
def test_a_shallow_copy_is_watched_with_its_hooks(kernels, shallow):
    """It shares its modules and their hooks, which see its calls. Who watches a place does as well."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.drop = nn.ReLU(), nn.Dropout(0.3)

        def forward(self, x):
            return F.dropout(F.leaky_relu(self.drop(self.act(x))), 0.1, self.training)

    class Watcher:
        def __init__(self):
            self.calls = 0

        def wants(self, training):
            return True

        def computes(self, row, values):
            pass

        def __call__(self, input, plan=None):
            self.calls += 1

    new = fuse(Net())
    of_module, of_place = Watcher(), Watcher()
    new.act.register_forward_pre_hook(Observer(of_module, of_module))
    end = places(new)[1].watch(of_place)
    other = shallow(new)
    other.act = new.act  # as in a shallow copy; a replica's is a replica
    other.drop = new.drop
    for model, calls in ((new, 1), (other, 2), (copy.deepcopy(new), 2)):
        model(X)
        assert (of_module.calls, of_place.calls) == (calls, calls)
    assert len(kernels) == 6
    end()
    other(X)
    assert (of_module.calls, of_place.calls) == (3, 2)

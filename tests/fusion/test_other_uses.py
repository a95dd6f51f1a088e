"""Code that does more with a model's modules than call them: it sees what it saw before."""

import pytest
import torch
from compare import X, assert_same, assert_unchanged
from uses import USED, Plain

from fusedact import fuse


@pytest.mark.parametrize("cls", USED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_other_uses(kernels, cls, training):
    torch.manual_seed(0)
    net = cls()
    new = fuse(net)
    for model in (net, new):
        model.train(training)
    assert_same(net, new, X)
    assert_unchanged(net, new)


def test_a_class_may_hide_a_child_with_none():
    class Hidden(Plain):
        drop = None

    for model in (Hidden(), fuse(Hidden())):
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            model(X)

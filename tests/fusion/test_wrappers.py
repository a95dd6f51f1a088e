"""Other tools that take hold of a model, before or after it was fused."""

import copy

import pytest
import torch
from compare import X, assert_same, runs
from nets import PAIRS, Net
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from fusedact import fuse, fusion_report, unfuse


@pytest.fixture
def mesh(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("before", [True, False], ids=["fused before", "fused after"])
def test_fsdp2(kernels, mesh, before):
    from torch.distributed.fsdp import FSDPModule, fully_shard

    net = Net()
    plain = copy.deepcopy(net)
    if before:
        fuse(net, inplace=True)
    for module in (net.out, net):
        fully_shard(module, mesh=mesh)
    if not before:
        fuse(net, inplace=True)
    cls = type(net)
    assert isinstance(net, FSDPModule)
    assert isinstance(net, Net)
    torch.manual_seed(1)
    expected = plain(X)
    torch.manual_seed(1)
    count, output = runs(kernels, net, X)
    assert count == PAIRS
    assert torch.equal(output, expected)
    assert len(fusion_report(net).fused) == PAIRS
    unfuse(net)
    assert type(net) is cls
    assert isinstance(net, FSDPModule)
    torch.manual_seed(1)
    count, output = runs(kernels, net, X)
    assert count == 0
    assert torch.equal(output, expected)


@pytest.mark.parametrize("before", [True, False], ids=["fused before", "fused after"])
def test_parametrizations(kernels, before):
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    net, plain = Net(), None
    net.scale = nn.Parameter(torch.ones(8))
    plain = copy.deepcopy(net)
    if before:
        fuse(net, inplace=True)
    for model in (net, plain):
        for module, name in ((model, "scale"), (model.fc, "weight")):
            parametrize.register_parametrization(module, name, Double())
    if not before:
        fuse(net, inplace=True)
    assert runs(kernels, net, X)[0] == PAIRS
    assert_same(plain, net, X)
    unfuse(net)
    assert parametrize.is_parametrized(net)
    assert_same(plain, net, X)
    for module, name in ((net, "scale"), (net.fc, "weight")):
        parametrize.remove_parametrizations(module, name)
    assert type(net) is Net


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [nn.DataParallel, AveragedModel, checkpoint_wrapper, nn.Sequential])
@pytest.mark.parametrize("first", [True, False], ids=["fused before", "fused after"])
def test_wrappers(kernels, wrap, first):
    net = Net()
    plain = wrap(copy.deepcopy(net))
    new = wrap(fuse(net)) if first else fuse(wrap(net))
    assert_same(plain, new, X)
    assert runs(kernels, new, X)[0] == PAIRS
    assert len(fusion_report(new).fused) == PAIRS


@pytest.mark.filterwarnings("ignore")
def test_compiled_before_it_is_fused(kernels):
    new = fuse(torch.compile(Net(), backend="eager"))
    assert len(fusion_report(new).fused) == PAIRS
    new(X)
    assert len(kernels) == PAIRS

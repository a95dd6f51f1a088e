"""Two processes on the CPU, joined by gloo: DDP, FSDP2 and tensor parallelism."""

import functools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from cases import eager_modules, fused_module, representatives, values, watched
from torch import nn

import fusedact

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

RANKS = (0, 1)
TIMEOUT = 60  # seconds, for whatever two processes do together


def join(rank, store):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT / 2)
    dist.init_process_group("gloo", f"file://{store}", timeout, len(RANKS), rank)


def leave():
    dist.barrier()  # gloo aborts a process whose peer is gone before it
    dist.destroy_process_group()


def answer(function, arguments):
    # As bytes: tensors on their own would travel through shared memory, which there may be none of.
    return pickle.dumps(function(*arguments))


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """Call a function in both processes at once: what each returns, in the ranks' order."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    spawn = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, spawn, join, (rank, store)) for rank in RANKS]

    def call(function, *arguments):
        futures = [pool.submit(answer, function, arguments) for pool in pools]
        return [pickle.loads(future.result(TIMEOUT)) for future in futures]

    yield call
    call(leave)
    for pool in pools:
        pool.shutdown()


def make_net(activation):
    torch.manual_seed(0)
    layers = nn.Linear(12, 32), fused_module(activation), nn.Linear(32, 32), fused_module(activation)
    return nn.Sequential(*layers, nn.Linear(32, 6)).double()


def make_batch():
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(net):
    found = [parameter.grad for parameter in net.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in found]


def lone_gradients(net, seeds):
    """In one process: the mean over the ranks' shares of the batch, with the masks of their seeds."""
    for seed, share in zip(seeds, make_batch(), strict=True):
        torch.manual_seed(seed)
        (net(share).square().sum() / len(seeds)).backward()
    return gradients(net)


def checkpointed(block):
    forward = block.forward
    block.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    return block


def data_parallel(activation, wrap, seeds):
    rank = dist.get_rank()
    net = wrap(make_net(activation))
    torch.manual_seed(seeds[rank])
    net(make_batch()[rank]).square().sum().backward()
    return gradients(net)


def sharded(net):
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(net)


def sharded_checkpointed(net):
    return sharded(checkpointed(net))


@representatives
@pytest.mark.parametrize("wrap", [nn.parallel.DistributedDataParallel, sharded, sharded_checkpointed])
@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)], ids=["same masks", "different masks"])
def test_gradients_equal_a_single_process(activation, wrap, seeds, on_ranks):
    expected = lone_gradients(make_net(activation), seeds)
    for result in on_ranks(data_parallel, activation, wrap, seeds):
        torch.testing.assert_close(result, expected)


def masks_of_seeds(module, seeds):
    torch.manual_seed(seeds[dist.get_rank()])
    return module(torch.ones(2000)) != 0


@representatives
def test_ranks_draw_from_their_own_generators(activation, on_ranks):
    module = fused_module(activation)
    first, second = on_ranks(masks_of_seeds, module, (3, 4))
    assert 0.4 < (first != second).double().mean() < 0.6
    first, second = on_ranks(masks_of_seeds, module, (3, 3))
    assert torch.equal(first, second)


# Tensor parallelism


@functools.cache
def make_mesh():
    """One in each process: torch 2.14 can't compile for a second one that is equal to it."""
    return DeviceMesh("cpu", RANKS)


def refusal(activation):
    """What PyTorch says where it has no derivative of this activation on a DTensor."""
    x = distribute_tensor(torch.ones(2), make_mesh(), [Shard(0)], src_data_rank=None).requires_grad_()
    try:
        activation.function(x, *values(activation)).sum().backward()
    except NotImplementedError as error:
        return str(error)


@pytest.fixture
def on_dtensors(activation, on_ranks):
    """`on_ranks`, for what differentiates sharded activations: only as far as eager PyTorch does."""
    if refused := on_ranks(refusal, activation)[0]:
        pytest.skip(f"eager PyTorch can't either: {refused}")
    return on_ranks


def through(activation, inplace, seeds, shape, placement):
    """What becomes of a sharded activation.

    Its local value, its whole value and gradient; whether it is sharded as eager's would be; and the
    generator's next numbers.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mesh = make_mesh()
    x = distribute_tensor(x, mesh, [placement], src_data_rank=None).requires_grad_()
    weight = distribute_tensor(weight, mesh, [placement], src_data_rank=None)
    placements = x.placements if inplace else eager_modules(activation)(x).placements
    torch.manual_seed(seeds[dist.get_rank()])
    y = fused_module(activation, inplace=inplace)(x * 1.0)
    (dx,) = torch.autograd.grad((y * weight).sum(), x)
    values = [t.detach() for t in (y.to_local(), y.full_tensor(), dx.full_tensor())]
    return values, y.placements == placements, torch.rand(3)


@representatives
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()], ids=str)
@pytest.mark.parametrize("shape", [(8, 64), (7, 33), (1, 2)], ids=str)
def test_a_sharded_activation_has_the_masks_of_a_whole_one(
    activation, inplace, placement, shape, on_dtensors
):
    """On a CPU: for equal seeds, what one process computes, and every generator ends where its does."""
    x, weight = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    torch.manual_seed(5)
    x.requires_grad_()
    expected = eager_modules(activation)(x)
    (dx,) = torch.autograd.grad(expected, x, weight)
    after = torch.rand(3)
    for (_, y, result), as_eager, rest in on_dtensors(through, activation, inplace, (5, 5), shape, placement):
        assert as_eager
        assert torch.equal(y, expected)
        torch.testing.assert_close(result, dx)
        assert torch.equal(rest, after)


def in_place(activation, compiled):
    """A sharded activation's buffer, and whether the result is in it."""
    module = fused_module(activation, inplace=True)
    module = torch.compile(module, fullgraph=True, backend="aot_eager") if compiled else module
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    x = distribute_tensor(x, make_mesh(), [Shard(0)], src_data_rank=None)
    torch.manual_seed(5)
    y = module(x)
    return x.full_tensor(), y.to_local().data_ptr() == x.to_local().data_ptr()


@representatives
@pytest.mark.parametrize("compiled", [False, True])
def test_in_place_on_a_sharded_activation(activation, compiled, on_ranks):
    """Without a gradient: with one, a compiled graph can't write into the DTensor that it is given."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    expected = eager_modules(activation)(x)
    for result, same_buffer in on_ranks(in_place, activation, compiled):
        torch.testing.assert_close(result, expected)
        assert same_buffer


def compiled_step(activation, inplace):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    x = distribute_tensor(x, make_mesh(), [Shard(0)], src_data_rank=None).requires_grad_()
    module = fused_module(activation, inplace=inplace)
    step = torch.compile(lambda x: module(x * 1.0), fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    y = step(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    return y.detach().full_tensor(), dx.full_tensor()


@representatives
@pytest.mark.parametrize("inplace", [False, True])
def test_a_compiled_sharded_activation_equals_a_single_process(activation, inplace, on_dtensors):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(2), requires_grad=True)
    torch.manual_seed(5)
    expected = eager_modules(activation)(x)
    (dx,) = torch.autograd.grad(expected.sum(), x)
    for result in on_dtensors(compiled_step, activation, inplace):
        torch.testing.assert_close(result, (expected.detach(), dx))


@representatives
@pytest.mark.parametrize("placement", [Shard(0), Shard(1)], ids=str)
@pytest.mark.parametrize("seeds", [(5, 5), (5, 6)], ids=["equal seeds", "different seeds"])
def test_a_sharded_activation_draws_no_mask_twice(activation, placement, seeds, on_dtensors):
    results = on_dtensors(through, activation, False, seeds, (40, 40), placement)
    first, second = (values[0] for values, _, _ in results)
    alive = (first != 0).double().mean(), (second != 0).double().mean()
    agree = ((first != 0) == (second != 0)).double().mean()
    chance = alive[0] * alive[1] + (1 - alive[0]) * (1 - alive[1])
    assert abs(agree - chance) < 0.1


def tensor_parallel(activation, use_local_output, seeds):
    rank, net = dist.get_rank(), make_net(activation)
    seen = []
    net[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    plan = {"0": ColwiseParallel(use_local_output=use_local_output), "2": RowwiseParallel()}
    net = parallelize_module(net, make_mesh(), plan)
    torch.manual_seed(seeds[rank])
    y = net(make_batch().flatten(0, 1))
    y.square().sum().backward()
    local = seen[0] if use_local_output else seen[0].to_local()
    return isinstance(seen[0], DTensor), y.detach() + 0, gradients(net), local.detach()


@representatives
def test_tensor_parallelism_on_dtensors_equals_a_single_process(activation, on_dtensors):
    net = make_net(activation)
    torch.manual_seed(5)
    expected = net(make_batch().flatten(0, 1))
    expected.square().sum().backward()
    for is_dtensor, y, grads, _ in on_dtensors(tensor_parallel, activation, False, (5, 5)):
        assert is_dtensor
        torch.testing.assert_close(y, expected.detach())
        torch.testing.assert_close(grads, gradients(net))


@representatives
def test_tensor_parallelism_on_local_tensors_draws_as_the_ranks_are_seeded(activation, on_ranks):
    """A plain tensor doesn't say that it is a shard: nn.Dropout can't know either."""
    net = make_net(activation)
    for seeds in ((5, 5), (5, 6)):
        results = on_ranks(tensor_parallel, activation, True, seeds)
        for rank, (is_dtensor, _, _, local) in enumerate(results):
            assert not is_dtensor
            half = net[0](make_batch().flatten(0, 1)).detach()[:, 16 * rank : 16 * (rank + 1)]
            torch.manual_seed(seeds[rank])
            torch.testing.assert_close(local, eager_modules(activation)(half))


# MNIST (`test_mnist.py` has its figures under torchrun)


def train_mnist(p, batch_size):
    from tqdm import tqdm

    from benchmarks import mnist, mnist_data

    torch.manual_seed(0)
    images, labels = torch.rand(10, 784), torch.arange(10)
    digits = mnist_data.Digits(images, labels, images, labels, "noise")
    options = mnist.parser().parse_args(
        ["--epochs=2", f"--batch-size={batch_size}", f"--p={p}", "--device=cpu"]
    )
    # Adam would forgive gradients of the wrong size.
    with mock.patch.object(torch.optim, "Adam", torch.optim.SGD), tqdm(disable=True) as progress:
        return mnist.train("ReLU", 0, digits, options, progress)["epochs"], torch.rand(3)


def test_mnist_takes_the_steps_of_one_process_with_masks_of_each(on_ranks):
    pytest.importorskip("tqdm", reason="benchmarks/mnist.py shows its progress: needs the extra `mnist`")
    expected, _ = train_mnist(0, 7)
    for epochs, _ in on_ranks(train_mnist, 0, 7):
        for epoch, same in zip(expected, epochs, strict=True):
            assert same == pytest.approx(epoch, rel=1e-5)
    (_, first), (_, second) = on_ranks(train_mnist, 0.5, 10)
    assert not torch.equal(first, second)


def counted(activation):
    """This process's report of its share of a batch, which only the second layer sees in both."""
    rank = dist.get_rank()
    net = nn.parallel.DistributedDataParallel(make_net(activation))
    with fusedact.ActivityMonitor(net) as monitor:
        net(make_batch()[rank]).sum().backward()
        if rank:
            net.module[1](torch.ones(3, 32).double())
    return monitor.report().as_dict()


@watched
def test_an_activity_report_counts_all_processes(activation, on_ranks):
    first, second = on_ranks(counted, activation)
    assert first == second
    net = make_net(activation).eval()
    batch = make_batch().flatten(0, 1)
    assert [row["samples"] for row in first.values()] == [13, 10]
    with fusedact.ActivityMonitor(net) as monitor:
        net(batch)
        net[1](torch.ones(3, 32).double())
    alone = monitor.report().as_dict()["1"]
    assert first["module.1"].pop("mean_activity") == pytest.approx(alone.pop("mean_activity"), rel=1e-12)
    assert (first["module.1"].pop("calls"), alone.pop("calls")) == (3, 2)
    assert first["module.1"] == alone

"""Fused models in the hands of other tools: copies, processes, wrappers, tracers, compilers, hooks."""

import copy
import multiprocessing
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from compare import X, assert_same, assert_unchanged
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import fusedact
from fusedact import fuse, fusion_report, unfuse


class Net(nn.Module):
    """At module level, so that it can be pickled; three pairs: modules, functions, nn.Sequential."""

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


def runs(kernels, model, *inputs, **kwargs):
    kernels.clear()
    output = model(*inputs, **kwargs)
    return len(kernels), output


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
    recognise.runs_kernels = lambda x: True
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


# Compilers, tracers ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("takes", [True, False], ids=["kernels", "no kernels"])
def test_compiles_without_a_break(kernels, takes, monkeypatch):
    if not takes:
        monkeypatch.undo()
    torch.compiler.reset()
    net = Net()
    new = fuse(net)
    compiled = torch.compile(new, backend="aot_eager", fullgraph=True)
    for training in (True, False):
        net.train(training), new.train(training)
        torch.manual_seed(1)
        expected = net(X)
        torch.manual_seed(1)
        assert torch.equal(compiled(X), expected)
    new.train()
    kernels.clear()
    torch.compiler.reset()
    torch.compile(new, backend="aot_eager", fullgraph=True)(X)
    assert len(kernels) == (PAIRS if takes else 0)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_tells_fused_from_plain():
    torch.compiler.reset()
    counter = CompileCounter()
    net = Net()
    other = fuse(net)
    frames = []
    for model in (net, other, net, other, lambda: unfuse(other)):
        model = model if isinstance(model, nn.Module) else model()
        torch.compile(model, backend=counter, fullgraph=True)(X)
        frames.append(counter.frame_count)
    assert frames == [1, 2, 2, 2, 2]


def test_symbolic_trace(kernels):
    net = Net()
    new = fuse(net)
    nodes = [[node.target for node in torch.fx.symbolic_trace(model).graph.nodes] for model in (net, new)]
    assert nodes[0] == nodes[1]
    traced = torch.fx.symbolic_trace(new)
    assert_same(net, traced, X)
    assert not kernels
    assert_same(traced, fuse(traced), X)


@pytest.mark.filterwarnings("ignore")
def test_jit():
    net = Net().eval()
    new = fuse(net)
    for make in (lambda model: torch.jit.trace(model, X), torch.jit.script):
        plain, fused = make(net), make(new)
        kinds = [[node.kind() for node in module.inlined_graph.nodes()] for module in (plain, fused)]
        assert kinds[0] == kinds[1]
        assert torch.equal(plain(X), fused(X))
    fuse(torch.jit.script(new), inplace=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strict", [True, False])
def test_export(strict):
    net = Net()
    new = fuse(net)
    graphs = [torch.export.export(model, (X,), strict=strict).graph for model in (net, new)]
    calls = [[n.target for n in graph.nodes if n.op == "call_function"] for graph in graphs]
    assert calls[0] == calls[1]
    assert torch.ops.aten.dropout.default in calls[0]


def test_transforms():
    net = Net().eval()
    new = fuse(net)
    for model in (net, new):
        model.train()
    state = dict(net.named_parameters())
    for transform in (torch.func.vmap, lambda f, **_: torch.func.jacrev(f)):
        outputs = []
        for model in (net, new):
            torch.manual_seed(1)
            call = lambda x: torch.func.functional_call(model, state, (x,))  # noqa: B023, E731
            outputs.append(transform(call, randomness="different")(X))
        assert torch.equal(*outputs)


class Subclass(torch.Tensor):
    seen = ()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        Subclass.seen += (function,)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_tensor_subclasses_and_function_modes():
    net = Net()
    new = fuse(net)
    seen = []
    for model in (net, new):
        Subclass.seen = ()
        torch.manual_seed(1)
        model(X.as_subclass(Subclass))
        seen.append(Subclass.seen)
    assert seen[0] == seen[1]
    assert F.dropout in seen[0]

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    for model in (net, new):
        seen.clear()
        with Mode():
            model(X)
        assert seen.count(F.dropout) == PAIRS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(kernels, dtype):
    net = Net()
    new = fuse(net)
    outputs = []
    for model in (net, new):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(model(X))
    assert outputs[0].dtype == outputs[1].dtype
    assert torch.equal(*outputs)


def test_checkpoint_and_inference(kernels):
    net = Net()
    new = fuse(net)
    x = X.clone().requires_grad_()
    outputs = []
    for model in (net, new):
        torch.manual_seed(1)
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
        outputs += [y, *torch.autograd.grad(y.sum(), x)]
        with torch.inference_mode():
            torch.manual_seed(1)
            outputs.append(model(X))
    for one, other in zip(outputs[:3], outputs[3:], strict=True):
        assert torch.equal(one, other)


# Hooks, flags, what others replace ---------------------------------------------------------------------

HOOKS = [
    name
    for name in dir(nn.Module)
    if name.startswith("register_") and name.endswith("hook") and "dict" not in name
]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", ["act", "drop", "out.1", "out.2"])
def test_hooks_of_every_kind(kernels, kind, place):
    net = Net()
    new = fuse(net)
    fired = []
    for model in (net, new):
        module = model.get_submodule(place)
        getattr(module, kind)(lambda *_: fired.append(1) or None)
        module.inplace = False
    assert_same(net, new, X.clone().requires_grad_())
    assert len(fired) == 2
    kernels.clear()
    assert runs(kernels, new, X)[0] == PAIRS - 1
    assert [pair.reason for pair in fusion_report(new).left] == [f"hooks on {type(module).__name__}"]


def test_global_hooks(kernels):
    new = fuse(Net())
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    assert runs(kernels, new, X)[0] == 0
    assert (seen.count(nn.ReLU), seen.count(nn.Dropout)) == (2, 2)
    handle.remove()
    assert runs(kernels, new, X)[0] == PAIRS


def flags(net):
    net.drop.eval()


def probability(net):
    net.drop.p, net.out[2].p = 0.9, 0


def monte_carlo(net):
    net.eval()
    for module in net.modules():
        if module.__class__.__name__.startswith("Dropout"):
            module.train()


def forward_of_the_instance(net):
    net.act.forward = lambda x: x * 2


def other_module(net):
    net.act, net.out[2] = nn.Tanh(), nn.Identity()


def own_dropout(net):
    class Dropout(nn.Dropout):
        def forward(self, x):
            return x * 3

    net.drop = Dropout(0.3)


def class_of_a_part(net):
    class Shifted(nn.ReLU):
        def forward(self, x):
            return super().forward(x) + 1

    net.act.__class__ = Shifted


def taken_out(net):
    net.out = net.out[:2]


def put_in(net):
    net.out.append(nn.Linear(8, 8)).append(nn.ReLU()).append(nn.Dropout(0.5))


def compiled_part(net):
    net.act.compile(backend="eager")


def p_is_no_float(net):
    net.drop.p = torch.tensor(0.3)


def half_precision(net):
    net.act = nn.LeakyReLU(float("nan"))


CHANGES = [
    *(flags, probability, monte_carlo, forward_of_the_instance, other_module, own_dropout),
    *(class_of_a_part, taken_out, put_in, compiled_part, p_is_no_float, half_precision),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_after_it_was_fused(kernels, change):
    net = Net()
    new = fuse(net)
    for model in (net, new):
        torch.manual_seed(0)
        change(model)
    assert_same(net, new, X)
    assert_same(net.eval(), new.eval(), X)


def test_functions_that_others_replace(kernels, monkeypatch):
    new = fuse(Net())
    with monkeypatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", lambda self, x: x + 1)
        patch.setattr(F, "leaky_relu", lambda x, slope: x + 1)
        assert runs(kernels, new, X)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(F, "dropout", lambda x, *args, **kwargs: x)
        assert runs(kernels, new, X)[0] == 0
    assert runs(kernels, new, X)[0] == PAIRS


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

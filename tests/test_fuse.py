"""`fuse`: what it replaces and what it leaves, with outputs, gradients and names as they were.

On a CPU a fused pair draws eager's mask and computes eager's bits, so models are compared exactly.
"""

import copy
import functools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, activations, parameters
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import fusedact
from fusedact import FusedELUDropout, FusedLeakyDropout, FusedReLUDropout, fuse, unfuse
from fusedact.activations import Saved
from fusedact.nn import _FusedDropout
from fusedact.rewriting import Rewritten

homogeneous = pytest.mark.parametrize(
    "activation", [a for a in ACTIVATIONS if a.homogeneous], ids=lambda a: a.name
)


def act(activation, **kwargs):
    return activation.module(*parameters(activation), **kwargs)


def results(model, inputs, seed=1, **kwargs):
    """A step's output, and the gradients by name. Leaves the model's buffers as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.zero_grad()
    torch.manual_seed(seed)
    output = model(*inputs, **kwargs)
    output = getattr(output, "loss", None) if hasattr(output, "keys") else output
    output = sum(part.sum() for part in output) if isinstance(output, tuple) else output
    output.square().sum().backward()
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    return {"": output.detach(), **{k: p.grad for k, p in model.named_parameters() if p.grad is not None}}


EXACT = {"rtol": 0, "atol": 0}


def assert_same(model, other, *inputs, exact=True, **kwargs):
    """Training steps, eval outputs, names and training flags of two models agree."""
    tolerance = EXACT if exact else {}
    theirs, ours = results(model, inputs, **kwargs), results(other, inputs, **kwargs)
    assert theirs.keys() == ours.keys()
    assert len(theirs) > 1
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, **tolerance)
    assert list(model.state_dict()) == list(other.state_dict())
    assert other.training == model.training
    model, other = copy.deepcopy(model).eval(), copy.deepcopy(other).eval()
    for key, value in results(model, inputs, **kwargs).items():
        torch.testing.assert_close(
            results(other, inputs, **kwargs)[key], value, **tolerance if key else EXACT
        )


def fused_modules(model):
    return [module for module in model.modules() if isinstance(module, _FusedDropout)]


def check(model, *inputs, fused, left=0, exact=True, **kwargs):
    """Fuses, counts, compares; so too for copies and after `unfuse`. Returns the fused model."""
    before = repr(model)
    new = fuse(model)
    assert repr(model) == before
    assert isinstance(new, type(model))
    assert type(new).__name__ == type(model).__name__
    report = new.fusion_report
    assert (len(report.fused), len(report.left)) == (fused, left), str(report)
    for pair in report.fused:
        assert isinstance(new.get_submodule(pair.path), _FusedDropout)
        assert not pair.reason
    assert all(pair.reason for pair in report.left)
    assert_same(model, new, *inputs, exact=exact, **kwargs)
    assert_same(new, copy.deepcopy(new), *inputs, **kwargs)
    back = unfuse(copy.deepcopy(new))
    assert repr(back) == before
    assert type(back) is type(model)
    assert not fused_modules(back)
    assert not hasattr(back, "fusion_report")
    assert_same(model, back, *inputs, **kwargs)
    return new


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Everything here is tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


X = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))


# nn.Sequential ----------------------------------------------------------------------------------------


@activations
@pytest.mark.parametrize("p", [0, 0.3, 1])
@pytest.mark.parametrize("inplace", [False, True])
def test_neighbours_in_sequential(activation, p, inplace):
    net = nn.Sequential(nn.Linear(8, 16), act(activation, inplace=inplace), nn.Dropout(p), nn.Linear(16, 4))
    # Eager computes the gradient of an in-place ELU from its output.
    exact = not (inplace and activation.saved is Saved.INPUT)
    new = check(net, X, fused=1, exact=exact)
    assert [type(m).__name__ for m in new] == ["Linear", "Identity", type(new[2]).__name__, "Linear"]
    (module,) = fused_modules(new)
    assert (module.activation, module.p, module.inplace) == (activation, p, inplace)
    if activation.parameter:
        assert getattr(module, activation.parameter) == parameters(activation)[0]


@activations
def test_at_any_depth_and_across_containers(activation):
    class Own(nn.Sequential):
        """A subclass that doesn't change how it is called."""

    def block(*after):
        return Own(nn.Linear(8, 8), nn.Sequential(act(activation), *after))

    net = nn.ModuleDict({"a": nn.Sequential(block(nn.Dropout(0.2)), block(), nn.Dropout(0.4))})
    new = check(net["a"], X, fused=2)
    assert [pair.path for pair in new.fusion_report.fused] == ["0.1.1", "2"]
    assert len(fuse(net).fusion_report.fused) == 2


def test_a_hook_between_containers_sees_what_it_saw():
    inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    inner.register_forward_hook(lambda module, inputs, output: output + 1)
    check(nn.Sequential(inner, nn.Dropout()), X, fused=0)


def test_training_flags_follow_the_dropout():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())
    net[2].eval()
    new = fuse(net)
    assert new.training
    assert not new[2].training
    assert_same(net, new, X)
    new[2].train()
    new[2].p = 0.25
    assert (unfuse(new)[2].training, new[2].p) == (True, 0.25)


@activations
def test_shared_modules(activation):
    """One object in several places: each place is replaced on its own."""
    a, d = act(activation), nn.Dropout(0.3)
    net = nn.Sequential(nn.Linear(8, 8), a, d, nn.Linear(8, 8), a, nn.Linear(8, 8), d, nn.Linear(8, 8), a, d)
    new = check(net, X, fused=2)
    assert new[4] is not new[1]
    assert type(new[4]) is activation.module
    back = unfuse(new)
    assert back[1] is back[4] is back[8]
    # A container in two places: what follows it in one of them is no part of it.
    inner = nn.Sequential(nn.Linear(8, 8), a)
    check(nn.Sequential(inner, nn.Dropout(), inner), X, fused=0)


@homogeneous
@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_first(activation, inplace):
    """The same function; LeakyReLU rounds in another order."""
    net = nn.Sequential(
        nn.Linear(8, 16), nn.Dropout(0.3, inplace), act(activation), nn.Linear(16, 4), act(activation)
    )
    new = check(net, X, fused=1, exact=activation.saved is Saved.ALIVE)
    assert isinstance(new[1], _FusedDropout)


def test_dropout_after_goes_before_dropout_first():
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.5))
    new = check(net, X, fused=1)
    assert [type(m).__name__ for m in new] == ["Linear", "Dropout", "Identity", "FusedReLUDropout"]


@activations
def test_homogeneous_says_what_is_so(activation):
    # Far out too: an activation may have a bound, as ReLU6 has.
    x, c = torch.randn(1000, dtype=torch.float64) * 10, 1 / (1 - 0.3)
    scaled = activation.eager(c * x, *parameters(activation))
    assert torch.allclose(scaled, c * activation.eager(x, *parameters(activation))) == activation.homogeneous


# Pairs in code ----------------------------------------------------------------------------------------


def code_nets(activation):
    """A model for each way of writing the pair, with how many modules `fuse` finds in it."""
    eager = activation.eager

    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
            self.act, self.drop, self.p = act(activation), nn.Dropout(0.3), 0.2
            self.function = eager

    class Modules(Base):
        def forward(self, x):
            return self.fc2(self.drop(self.act(self.fc1(x))))

    class Statements(Base):
        def forward(self, x):
            h = self.fc1(x)
            h = self.act(h)
            h = self.drop(h)
            return self.fc2(h)

    class OtherNames(Base):
        def forward(self, x, mask=None):
            a = self.act(self.fc1(x))
            b = self.drop(a)
            if mask is not None:
                b = b * mask
            return self.fc2(b)

    class Residual(Base):
        def forward(self, x):
            h = eager(x)
            return x + self.drop(h)

    class Functions(Base):
        def forward(self, x):
            x = F.dropout(eager(self.fc1(x)), 0.4, self.training)
            x = eager(self.fc2(x))
            return self.fc1(F.dropout(x, training=self.training, p=self.p))

    class Mixed(Base):
        def forward(self, x):
            x = self.drop(eager(self.fc1(x)))
            return F.dropout(self.act(self.fc2(x)), p=self.p, training=self.training)

    class Attribute(Base):
        def forward(self, x):
            return self.fc2(self.drop(self.function(self.fc1(x))))

    class Shared(Base):
        """The dropout is used alone too, the activation in both pairs and alone."""

        def forward(self, x):
            x = self.drop(self.act(self.fc1(x)))
            x = self.drop(self.fc2(x))
            x = F.dropout(self.act(self.fc1(x)), 0.1, training=self.training)
            return self.act(self.fc2(x))

    class Loop(Base):
        def forward(self, x):
            for _ in range(3):
                x = self.drop(self.act(self.fc1(x)))
                x = self.fc2(x)
            return x

    class Branches(Base):
        """Nothing a tracer could follow."""

        def forward(self, x):
            x = self.fc1(x)
            if x.mean() > 0 and self.training:
                x = self.drop(self.act(x))
            else:
                try:
                    x = self.act(x)
                    x = self.drop(x)
                finally:
                    pass
            return self.fc2(x)

    class Helper(Base):
        def forward(self, x):
            return self.block(x)

        def block(self, x, *, scale=2):
            return self.fc2(self.drop(self.act(self.fc1(x)))) * scale

    class Super(Modules):
        def forward(self, x):
            return F.dropout(eager(super().forward(x)), 0.1, self.training)

    class Private(Base):
        def __init__(self):
            super().__init__()
            self.__scale = 3

        def forward(self, x, *, scale=None):
            x = self.drop(eager(self.fc1(x)))
            return self.fc2(x) * (self.__scale if scale is None else scale)

    class Nested(Base):
        def forward(self, x):
            return F.dropout(eager(self.fc2(self.drop(self.act(self.fc1(x))))), 0.2, self.training)

    class Annotated(Base):
        def forward(self, x):
            h: torch.Tensor = self.act(self.fc1(x))
            h = self.drop(h)
            return self.fc2(h)

    class Items(Base):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"act": act(activation), "drop": nn.Dropout(0.4)})
            self.drops = nn.ModuleList([nn.Dropout(0.1)])

        def forward(self, x):
            x = self.parts["drop"](self.parts["act"](self.fc1(x)))
            return self.drops[0](eager(self.fc2(x)))

    class Closure(Base):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(
                lambda x: self.fc2(self.drop(eager(self.fc1(x)))), x, use_reentrant=False
            )

    return {
        Modules: 1,
        Statements: 1,
        OtherNames: 1,
        Residual: 1,
        Functions: 2,
        Mixed: 2,
        Attribute: 1,
        Shared: 2,
        Loop: 1,
        Branches: 2,
        Helper: 1,
        Super: 2,
        Private: 1,
        Nested: 2,
        Annotated: 1,
        Items: 2,
        Closure: 1,
    }


@activations
@pytest.mark.parametrize("name", [cls.__name__ for cls in code_nets(ACTIVATIONS[0])])
def test_pairs_in_code(activation, name):
    (cls, fused) = next(item for item in code_nets(activation).items() if item[0].__name__ == name)
    net = cls()
    if name == "Residual":
        x = X.clone().requires_grad_()
        net = nn.Sequential(nn.Linear(8, 8), net)
        check(net, x, fused=1)
        return
    check(net, X, fused=fused)


@homogeneous
def test_dropout_first_in_code(activation):
    eager = activation.eager

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x):
            return eager(self.drop(self.fc(x)))

    check(Net(), X, fused=1, exact=activation.saved is Saved.ALIVE)


@pytest.mark.parametrize(
    "relu", [torch.relu, torch.relu_, F.relu, F.relu_, torch.Tensor.relu, torch.Tensor.relu_]
)
def test_spellings_of_relu(relu):
    class Net(Plain):
        def forward(self, x):
            return self.drop(relu(self.fc(x)))

    check(Net(), X, fused=1)


def test_methods_of_a_tensor():
    class Net(Plain):
        def forward(self, x):
            x = self.drop(self.fc(x).relu())
            x = self.fc(x).relu_()
            x = self.drop(x)
            x = self.drop(self.fc(x).tanh())
            return self.drop(self.fc(x)).relu()

    new = check(Net(), X, fused=3, left=1)
    assert new.fusion_report.left[0].pair == ".tanh -> self.drop"


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.fc(x))))


class Lenient(nn.Module):
    """At module level, so that it can be pickled; modules and functions, a slot taken and a new one."""

    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.LeakyReLU(0.2), nn.Dropout(0.3)

    def forward(self, x, mask: torch.Tensor | None = None):
        x = self.drop(F.relu(self.fc(x)))
        if mask is not None:
            x = x * mask
        x = F.dropout(self.act(self.fc(x)), 0.1, training=self.training)
        return F.dropout(F.elu(self.fc(x), alpha=2.0), 0.1, training=self.training)


def test_pickle_deepcopy_and_arguments():
    net = Lenient()
    new = check(net, X, fused=3)
    mask = torch.rand(6, 8)
    for other in (pickle.loads(pickle.dumps(new)), copy.deepcopy(new)):
        assert type(other) is type(new)
        assert_same(net, other, X)
        assert_same(net, other, X, mask)
        assert_same(net, unfuse(other), X, mask=mask)
        assert type(other) is Lenient
    assert isinstance(new.drop, FusedReLUDropout)
    assert isinstance(new.act, FusedLeakyDropout)
    assert isinstance(new.fused_elu_dropout, FusedELUDropout)
    assert new.fused_elu_dropout.alpha == 2


def test_stored_for_other_source():
    new = fuse(Lenient())
    cls, arguments, *_ = new.__reduce_ex__(4)
    edits = tuple((name, checksum + 1, pairs) for name, checksum, pairs in arguments[1])
    with pytest.raises(RuntimeError, match=r"Lenient.forward is not what it was when the model was fused"):
        cls(arguments[0], edits)


def test_the_original_objects_come_back():
    net = Lenient()
    drop, leaky = net.drop, net.act
    assert fuse(net, inplace=True) is net
    assert net.drop is not drop
    assert unfuse(net) is net
    assert net.drop is drop
    assert net.act is leaky
    assert "fused_elu_dropout" not in dict(net.named_modules())


def test_parameters_and_their_device_stay():
    net = Lenient().to("meta")
    parameters = dict(net.named_parameters())
    fuse(net, inplace=True)
    assert all(net.get_parameter(name) is parameter for name, parameter in parameters.items())
    assert len(fuse(net).fusion_report.fused) == 3
    assert {parameter.device.type for parameter in fuse(net).parameters()} == {"meta"}


def test_fused_twice():
    net = Lenient()
    once = fuse(net)
    twice = fuse(once)
    assert str(twice.fusion_report) == str(once.fusion_report)
    assert repr(twice) == repr(once)
    assert_same(net, twice, X)
    assert repr(unfuse(twice)) == repr(net)


def test_a_part_that_was_fused():
    net = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout()), nn.Linear(8, 8))
    fuse(net[0], inplace=True)
    assert len(fuse(net, inplace=True).fusion_report.fused) == 1
    assert not fused_modules(unfuse(net))


def test_decorated_methods():
    def logged(forward):
        @functools.wraps(forward)
        def wrapper(self, *args, **kwargs):
            seen.append(type(self).forward is wrapper)
            return forward(self, *args, **kwargs)

        return wrapper

    seen = []

    class Net(Lenient):
        @logged
        @torch.autocast("cpu", dtype=torch.bfloat16)
        def forward(self, x):
            return F.dropout(F.elu(self.fc(x)), 0.1, self.training)

    new = check(Net(), X, fused=1)
    seen.clear()
    new(X)
    assert seen == [True]


def test_registers_of_subclasses_stay_as_they_are():
    register = []

    class Net(Lenient):
        def __init_subclass__(cls):
            register.append(cls)

    class Own(Net):
        def forward(self, x):
            return super().forward(x) + F.dropout(F.relu(self.fc(x)), 0.5, self.training)

    new = fuse(Own())
    assert isinstance(new, Rewritten)
    assert register == [Own]


# What is left -----------------------------------------------------------------------------------------


HOOKS = [
    name for name in dir(nn.Module) if name.startswith("register_") and name.removesuffix("_hook") != name
]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("place", [1, 2])
def test_hooks_of_every_kind(kind, place):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())
    hooked(net[place], kind)
    report = fuse(net).fusion_report
    assert [pair.reason for pair in report.left] == [f"hooks on {type(net[place]).__name__}"]


def hooked(module, kind="register_forward_hook"):
    getattr(module, kind)(lambda *args: None)
    return module


def with_forward(module):
    module.forward = lambda x: x * 2
    return module


class SubReLU(nn.ReLU):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ((nn.ReLU(), nn.Dropout2d()), "no fused kernel for Dropout2d"),
        ((nn.ReLU(), nn.Dropout1d()), "no fused kernel for Dropout1d"),
        ((nn.ReLU(), nn.Dropout3d()), "no fused kernel for Dropout3d"),
        ((nn.ReLU(), nn.AlphaDropout()), "no fused kernel for AlphaDropout"),
        ((nn.ReLU(), nn.FeatureAlphaDropout()), "no fused kernel for FeatureAlphaDropout"),
        ((nn.GELU(), nn.Dropout()), "no fused kernel for GELU"),
        ((nn.Tanh(), nn.Dropout()), "no fused kernel for Tanh"),
        ((SubReLU(), nn.Dropout()), "SubReLU is a subclass of ReLU"),
        ((hooked(nn.ReLU()), nn.Dropout()), "hooks on ReLU"),
        ((nn.ReLU(), hooked(nn.Dropout())), "hooks on Dropout"),
        ((nn.ReLU(), hooked(nn.Dropout(), "register_full_backward_hook")), "hooks on Dropout"),
        ((hooked(nn.ReLU(), "register_forward_pre_hook"), nn.Dropout()), "hooks on ReLU"),
        ((with_forward(nn.ReLU()), nn.Dropout()), "forward of this ReLU was replaced"),
        ((nn.Dropout(), nn.ELU()), "dropout has to come after it"),
        ((nn.ReLU(inplace=True), nn.Dropout()), "works in place, on a tensor that others may read"),
        ((nn.LeakyReLU(float("inf")), nn.Dropout()), "negative_slope has to be a finite number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(type(m).__name__ for m in value),
)
def test_left_in_sequential(modules, reason):
    net = nn.Sequential(*modules)
    new = fuse(net)
    assert not new.fusion_report.fused
    (pair,) = new.fusion_report.left
    assert reason in pair.reason
    assert [type(m) for m in new] == [type(m) for m in net]


@pytest.mark.parametrize("modules", [(nn.Softmax(-1), nn.Dropout()), (nn.Dropout(), nn.GELU()), (nn.ReLU(),)])
def test_no_pair_is_not_reported(modules):
    report = fuse(nn.Sequential(*modules)).fusion_report
    assert not report.fused
    assert not report.left


class Left(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.drop, self.gelu = nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3), nn.GELU()
        self.drop2d, self.inplace, self.flag = nn.Dropout2d(), nn.ReLU(inplace=True), True
        self.p = 0.5
        self.seq = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())


class UsedTwice(Left):
    reason = "the result of the first is used again"

    def forward(self, x):
        h = self.act(self.fc(x))
        return self.drop(h) + h


class UsedTwiceLater(Left):
    reason = "the result of the first is used again"

    def forward(self, x):
        h = F.relu(self.fc(x))
        y = self.drop(h)
        return y * h


class UsedTwiceInAClosure(Left):
    reason = "the result of the first is used again"

    def forward(self, x):
        h = F.relu(self.fc(x))
        later = lambda: h  # noqa: E731
        h2 = self.drop(h)
        return h2 + later()


class UsedInFinally(Left):
    reason = "the result of the first is used again"

    def forward(self, x):
        h = self.fc(x)
        try:
            h = F.relu(h)
            return self.drop(h)
        finally:
            h.sum()


class ChangedInPlace(Left):
    reason = "the result of the first is used again"

    def forward(self, x):
        x = self.fc(x)
        h = F.leaky_relu(x)
        y = self.drop(h)
        h += 1
        return y + x


class Between(Left):
    reason = "other code stands between the two"

    def forward(self, x):
        h = self.act(self.fc(x))
        x = F.dropout(x, 0.5, self.training)
        h = self.drop(h)
        return h + x


class CallBefore(Left):
    """The other dropout draws first."""

    reason = "other code stands between the two"

    def forward(self, x):
        h = self.act(self.fc(x))
        return F.dropout(x, 0.5, self.training) + self.drop(h)


class Conditional(Left):
    reason = "other code stands between the two"

    def forward(self, x):
        h = self.act(self.fc(x))
        return self.drop(h) if self.flag else x


class AlwaysOn(Left):
    reason = "drops in eval mode too, or never"

    def forward(self, x):
        return F.dropout(self.act(self.fc(x)), 0.5)


class OtherFlag(Left):
    reason = "training=self.flag isn't the module's own flag"

    def forward(self, x):
        return F.dropout(self.act(self.fc(x)), 0.5, self.flag)


class Computed(Left):
    reason = "p=self.p / 2 isn't known beforehand"

    def forward(self, x):
        return F.dropout(self.act(self.fc(x)), self.p / 2, self.training)


class Scheduled(Left):
    reason = "p=self.p isn't known beforehand"

    def forward(self, x):
        return F.dropout(self.act(self.fc(x)), self.p, self.training)

    def step(self):
        self.p = self.p * 0.9


class InPlace(Left):
    reason = "works in place, on a tensor that others may read"

    def forward(self, x):
        h = self.fc(x)
        return self.drop(self.inplace(h)) + h


class InPlaceFunction(Left):
    reason = "works in place, on a tensor that others may read"

    def forward(self, x):
        h = self.fc(x) * 2
        return self.drop(F.relu_(h)) + h


class InPlaceAfterDropout(Left):
    reason = "works in place, on a tensor that others may read"

    def forward(self, x):
        h = self.gelu(self.fc(x))
        return self.inplace(self.drop(h)) + h


class Gelu(Left):
    reason = "no fused kernel for gelu"

    def forward(self, x):
        return self.drop(F.gelu(self.fc(x)))


class Channels(Left):
    reason = "no fused kernel for Dropout2d"

    def forward(self, x):
        return (
            self.drop2d(self.act(self.fc(x)[None])[..., None])[0, ..., 0]
            + self.drop2d(self.act(self.fc(x)[None, ..., None]))[0, ..., 0]
        )


class Iterated(Left):
    reason = "Iterated does more with it than call it"

    def forward(self, x):
        for layer in self.seq:
            x = layer(x)
        return x


class Indexed(Left):
    reason = "Indexed does more with it than call it"

    def forward(self, x):
        return self.seq(x) + self.seq[1](x)


class Looked(Left):
    reason = "Looked does more with it than call it"

    def forward(self, x):
        return self.seq(x) + list(self.children())[-1][:2](x)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())

    def forward(self, x):
        return self.features(x)


class Outer(nn.Module):
    reason = "code elsewhere does more with .features than call it"

    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner.features[:2](x)


LEFT = [*Left.__subclasses__(), Outer]


@pytest.mark.parametrize("cls", LEFT, ids=lambda cls: cls.__name__)
def test_left_in_code(cls):
    net = cls()
    new = fuse(net)
    # `Left`'s own nn.Sequential is fused wherever nothing looks into it.
    assert all("seq" in pair.path for pair in new.fusion_report.fused)
    assert cls.reason in {pair.reason for pair in new.fusion_report.left} | {
        pair.reason[-len(cls.reason) :] for pair in new.fusion_report.left
    }
    unfuse(new)
    assert_same(net, fuse(net), X)


def test_source_that_cannot_be_read():
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
    new = check(scope["Net"](), X, fused=0, left=1)
    assert new.fusion_report.left[0].reason == "the source of Net.forward can't be read"


def test_source_that_is_not_what_runs(tmp_path):
    """The file has changed since it was imported."""
    path = tmp_path / "changed.py"
    source = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc, self.act, self.drop = nn.Linear(8, 8), nn.ReLU(), nn.Dropout()\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.act(x))\n"
    )
    path.write_text(source.replace("self.fc(self", "self.drop(self"))
    scope = {}
    exec(compile(source, str(path), "exec"), scope)
    assert fuse(scope["Net"]()).fusion_report.left[0].reason == "the source of Net.forward can't be read"


def test_a_decorator_that_hides_the_method():
    def hiding(forward):
        def wrapper(self, x):
            return forward(self, x)

        return wrapper

    class Net(Left):
        forward = hiding(UsedTwice.forward)

    assert "can't be read" in fuse(Net()).fusion_report.left[-1].reason


def test_code_of_a_base_class():
    class Base(Left):
        def forward(self, x):
            return F.dropout(F.relu(self.fc(x)), 0.3, self.training)

    class Net(Base):
        def forward(self, x):
            return super().forward(x) * 2

    check(Base(), X, fused=2)
    new = check(Net(), X, fused=1, left=1)
    assert "forward is a base class's that is called by super()" in new.fusion_report.left[0].reason


def test_code_that_cannot_be_changed_keeps_its_modules():
    """One of two pairs with the same dropout is in a method whose decorator hides it."""

    def hiding(method):
        held = [method]
        return functools.wraps(method)(lambda self, x: held[0](self, x))

    class Net(Left):
        def forward(self, x):
            return self.again(self.drop(F.elu(self.fc(x))))

        @hiding
        def again(self, x):
            return self.drop(F.elu(self.fc(x)))

    new = check(Net(), X, fused=2, left=1)  # the other is Left's nn.Sequential
    assert "again is decorated in a way that hides it" in new.fusion_report.left[0].reason
    assert type(new.drop) is nn.Dropout


def test_a_module_that_is_copied_in_its_own_way():
    class Net(Left):
        def forward(self, x):
            return F.dropout(F.relu(self.fc(x)), 0.3, self.training)

        def __deepcopy__(self, memo):
            net = Net()
            net.load_state_dict(self.state_dict())
            return net

    new = fuse(Net())
    assert len(new.fusion_report.fused) == 1  # Left's nn.Sequential
    assert "Net is copied in a way of its own" in new.fusion_report.left[0].reason


def test_a_graph_module():
    """Its code is made anew from its graph when it is copied: fuse before tracing."""

    class Net(Left):
        def forward(self, x):
            return self.drop(F.elu(self.fc(x)))

    traced = torch.fx.symbolic_trace(Net())
    new = fuse(traced)
    assert (len(new.fusion_report.fused), len(new.fusion_report.left)) == (0, 1)
    assert_same(traced, new, X)


def test_a_forward_of_the_instance():
    net = UsedTwice()
    net.forward = lambda x: net.fc(x)
    assert fuse(net, inplace=True).fusion_report.left[0].reason == "its forward was replaced"


def test_other_uses_of_the_modules_keep_working():
    """`extract` and another model call the activation alone: the code changes, not the modules."""

    class Net(Left):
        def forward(self, x):
            return self.drop(self.act(self.fc(x)))

        def extract(self, x):
            return self.act(x)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            return self.net.drop(self.net(x))

    net = Around()
    new = check(net, X, fused=2)  # the other is Left's nn.Sequential
    assert type(new.net.drop) is nn.Dropout
    assert torch.equal(new.net.extract(X), F.relu(X))


# Code that does more with the modules than call them --------------------------------------------------


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


USED = [cls for cls in vars(Used).values() if isinstance(cls, type)]


@pytest.mark.parametrize("cls", USED, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("training", [True, False])
def test_other_uses_of_the_modules(cls, training):
    net = cls()
    new = fuse(net)
    outputs = []
    for model in (net, new):
        torch.manual_seed(1)
        outputs.append(model.train(training)(X))
    assert torch.equal(*outputs)


def test_a_list_of_sequences_is_called_whole():
    class Net(Chain):
        def forward(self, x):
            for i, sequence in enumerate(self.list):
                x = sequence(x) if x.shape[0] > i else self.list[0](x)
            return self.one(x)

    check(Net(), X, fused=2)


def test_a_dropout_that_is_not_known_beforehand_is_reported():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
            self.drops = nn.ModuleList([nn.Dropout(0.1), nn.Dropout(0.2)])

        def forward(self, x):
            for layer, drop in zip(self.layers, self.drops, strict=True):
                x = drop(F.relu(layer(x)))
            for i in range(2):
                x = self.drops[i](F.relu(self.layers[i](F.relu(x))))
            return x

    report = fuse(Net()).fusion_report
    assert [(pair.pair, pair.reason) for pair in report.left] == [
        ("F.relu -> drop", "what drop is isn't known beforehand"),
        ("F.relu -> self.drops[i]", "what self.drops[i] is isn't known beforehand"),
    ]


# Transformer layers -----------------------------------------------------------------------------------

ENCODER = functools.partial(nn.TransformerEncoderLayer, 16, 2, 32, dropout=0.2, batch_first=True)
DECODER = functools.partial(nn.TransformerDecoderLayer, 16, 2, 32, dropout=0.2, batch_first=True)


@pytest.mark.parametrize("layer", [ENCODER, DECODER], ids=["encoder", "decoder"])
@pytest.mark.parametrize("activation", ["relu", F.relu, nn.ReLU()], ids=["name", "function", "module"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(layer, activation, norm_first):
    net = layer(activation=activation, norm_first=norm_first)
    x = torch.randn(2, 3, 16)
    inputs = [x] if layer is ENCODER else [x, x]
    new = check(net, *inputs, fused=1)
    assert type(new) is type(net)  # the code stays
    assert_same(net, pickle.loads(pickle.dumps(new)), *inputs)


@pytest.mark.parametrize("activation", ["relu", nn.ReLU()], ids=["function", "module"])
def test_transformer_encoder_fast_path(activation, monkeypatch):
    """In eval mode without gradients a kernel of PyTorch's runs in place of the layers' code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.TransformerEncoder(ENCODER(activation=activation), 2)
        new = check(net, torch.randn(3, 5, 16), fused=2)
        x, padding = torch.randn(3, 5, 16), torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [4]])
        calls = []
        fast = torch._transformer_encoder_layer_fwd
        monkeypatch.setattr(
            torch, "_transformer_encoder_layer_fwd", lambda *args: calls.append(1) or fast(*args)
        )
        with torch.no_grad():
            expected = net.eval()(x, src_key_padding_mask=padding)
            assert torch.equal(new.eval()(x, src_key_padding_mask=padding), expected)
    assert len(calls) == 4


def test_transformer_layer_with_gelu():
    report = fuse(ENCODER(activation="gelu")).fusion_report
    assert [pair.reason for pair in report.left] == ["no fused kernel for gelu"]


# Real models ------------------------------------------------------------------------------------------


def compiled_step_runs(model, *inputs, **kwargs):
    """A compiled training step is the eager one: this backend keeps PyTorch's own random numbers."""
    torch.compiler.reset()
    eager = results(model, inputs, **kwargs)
    compiled = results(torch.compile(model, backend="aot_eager"), inputs, **kwargs)
    torch.testing.assert_close(list(compiled.values()), list(eager.values()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "fused", "size"), [("alexnet", 1, 63), ("vgg11", 2, 32)])
def test_torchvision(name, fused, size):
    models = pytest.importorskip("torchvision.models", reason="needs torchvision: the extra `mnist`")
    with torch.device("meta"):
        net = getattr(models, name)(weights=None, num_classes=5)
    # The classifiers alone have dropout; their widest layers shrunk, for the test's sake.
    widths = {4096: 32, 9216: 9216, 25088: 25088}
    layers = [
        nn.Linear(widths.get(m.in_features), widths.get(m.out_features, m.out_features))
        if isinstance(m, nn.Linear)
        else m
        for m in net.classifier
    ]
    features = net.features.to_empty(device="cpu")
    for parameter in features.parameters():
        nn.init.normal_(parameter, std=0.05)
    net.features, net.classifier = features, nn.Sequential(*layers)
    net.avgpool = net.avgpool.to_empty(device="cpu")
    x = torch.randn(2, 3, size, size)
    new = check(net, x, fused=fused)
    compiled_step_runs(new, x)


@pytest.mark.filterwarnings("ignore")
def test_torchvision_googlenet_has_functional_pairs():
    path = "torchvision.models.googlenet"
    block = pytest.importorskip(path, reason="needs torchvision: the extra `mnist`").InceptionAux(16, 5)
    x = torch.randn(2, 16, 8, 8)
    compiled_step_runs(check(block, x, fused=1), x)


@pytest.mark.filterwarnings("ignore")
def test_transformer_compiled():
    net = nn.TransformerEncoder(ENCODER(), 2)
    x = torch.randn(3, 5, 16)
    compiled_step_runs(check(net, x, fused=2), x)


def hugging_face(name):
    transformers = pytest.importorskip("transformers", reason="needs transformers: the extra `test`")
    common = {"vocab_size": 50, "d_model": 16}
    if name == "T5":
        config = transformers.T5Config(**common, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        config.decoder_start_token_id = 0
    else:
        sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
        both = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sizes.items()}
        config = getattr(transformers, f"{name}Config")(
            **common, **both, activation_function="relu", activation_dropout=0.1, max_position_embeddings=32
        )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["T5", "Bart", "M2M100"])
def test_hugging_face(name, tmp_path):
    net, ids = hugging_face(name).train(), torch.arange(10).view(2, 5)
    new = check(net, fused=2, input_ids=ids, labels=ids)
    assert_same(net, pickle.loads(pickle.dumps(new)), input_ids=ids, labels=ids)
    new.save_pretrained(tmp_path)
    assert_same(net, type(net).from_pretrained(tmp_path).train(), input_ids=ids, labels=ids)
    compiled_step_runs(new, input_ids=ids, labels=ids)
    net.gradient_checkpointing_enable()
    new.gradient_checkpointing_enable()
    assert_same(net, new, input_ids=ids, labels=ids)


# Report, undo, errors ---------------------------------------------------------------------------------


def test_report():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3), nn.GELU(), nn.Dropout())
    report = fuse(net).fusion_report
    assert str(report).splitlines() == [
        "2  ReLU -> Dropout(p=0.3)  fused",
        "4  GELU -> Dropout(p=0.5)  no fused kernel for GELU",
        "1 fused, 1 left",
    ]
    assert str(fuse(nn.Linear(2, 2)).fusion_report) == "0 fused, 0 left"
    assert fusedact.fuse is fuse


def test_p_is_the_fused_modules_own():
    new = fuse(Lenient())
    new.drop.p = 0.0
    new.act.p = new.fused_elu_dropout.p = 0.0
    assert torch.equal(new(X), new.eval()(X))


@pytest.mark.parametrize(
    ("model", "got"), [(None, "NoneType"), (F.relu, "function"), (nn.ReLU, r"type \(pass an instance")]
)
def test_no_module(model, got):
    for function in (fuse, unfuse):
        with pytest.raises(TypeError, match=f"model has to be a torch.nn.Module, but got {got}"):
            function(model)


def test_bad_inplace():
    with pytest.raises(TypeError, match="inplace has to be True or False, but got inplace=1"):
        fuse(nn.Linear(2, 2), 1)


def test_unfuse_what_was_not_fused():
    with pytest.raises(ValueError, match=r"fusedact\.fuse returned, but this Sequential was not fused"):
        unfuse(nn.Sequential(nn.ReLU(), nn.Dropout()))
    nothing = fuse(nn.Linear(2, 2))
    assert unfuse(nothing) is nothing
    with pytest.raises(ValueError, match="was not fused"):
        unfuse(nothing)


def test_unfuse_leaves_what_others_put_there():
    new = fuse(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout()))
    new[2] = nn.Tanh()
    assert [type(m) for m in unfuse(new)] == [nn.Linear, nn.ReLU, nn.Tanh]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, AveragedModel, checkpoint_wrapper, functools.partial(torch.compile, backend="eager")],
)
@pytest.mark.parametrize("make", [Plain, lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout())])
def test_wrapped_before(wrap, make):
    """PyTorch's own modules around a model do nothing with its parts that would forbid it."""
    new = fuse(wrap(make()))
    assert (len(new.fusion_report.fused), len(new.fusion_report.left)) == (1, 0)
    (module,) = fused_modules(new)
    module.p = 0.0
    x = X
    if wrap is nn.DataParallel and torch.cuda.is_available():  # which takes a model on its first GPU only
        new, x = new.cuda(), X.cuda()
    assert torch.equal(new(x), new.eval()(x))


@pytest.mark.filterwarnings("ignore")
def test_compiled_before():
    net = torch.compile(Lenient(), backend="aot_eager")
    new = fuse(net)
    assert len(new.fusion_report.fused) == 3
    assert len(fused_modules(new)) == 3

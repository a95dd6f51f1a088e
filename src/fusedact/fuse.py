"""`fuse(model)`: every activation and dropout that follow each other become one fused module.

Neighbours in an `nn.Sequential` change places with the fused module and an `nn.Identity`. Pairs in a
method's code are found in its source (`fusedact.methods`). Where both are modules that nothing else
uses, they change places likewise and the code stays; else the two calls in the code become one.
"""

import ast
import collections
import copy
import dataclasses
import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from . import nn as fused_nn
from .activations import Activation, check_flag, check_module
from .functional import ACTIVATIONS
from .methods import MISSING, Method, Methods, Names, argument, looks_up
from .rewriting import Edits, Rewritten, changeable, rewritten

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An activation and a dropout.

    Attributes:
        path: of the fused module, as `model.get_submodule` takes it. Of a pair that was left: of its
            dropout in an `nn.Sequential`, else of the module whose code has it, empty for the model.
        pair: the two, in the order of their calls.
        reason: why it was left; empty if it was fused.
    """

    path: str
    pair: str
    reason: str = ""


@dataclasses.dataclass
class FusionReport:
    """What `fuse` found. Prints as a table.

    Attributes:
        fused: the pairs that are now one module.
        left: the pairs left as they were, each with its reason.
    """

    fused: list[Pair] = dataclasses.field(default_factory=list)
    left: list[Pair] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        rows = [(p.path or "(the model)", p.pair, p.reason or "fused") for p in self.fused + self.left]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [f"{path:{widths[0]}}  {pair:{widths[1]}}  {what}" for path, pair, what in rows]
        return "\n".join([*lines, f"{len(self.fused)} fused, {len(self.left)} left"])


def fuse(model: Model, inplace: bool = False) -> Model:
    """`model` with every activation -> dropout pair that is safe to fuse in one kernel each way.

    Pairs are found as neighbours in `nn.Sequential`, at any depth, and as calls that follow each other
    in the code of any module (`F.dropout(F.relu(x), self.p, self.training)`, `self.drop(self.act(x))`),
    in either order where the two mean the same. Parameters, `state_dict` names, training flags and
    outputs in eval mode stay as they are. The fused module stands where the dropout or the activation
    stood, if that was a module used for nothing else; from then on its `p` is the one that counts. What
    it computes is that of the fused modules: on a CPU, for the same seed, the very bits, except

    - where dropout comes before a LeakyReLU: it is scaled last, which rounds differently; and an element
      of -inf that is dropped gives what the activation makes of it times 0, where eager gives NaN;
    - in gradients of an in-place ELU, which eager PyTorch computes from its output.

    Args:
        model: any module. One fused before is fused anew.
        inplace: change `model` itself. Default: False, which leaves it alone and changes a deep copy.

    Returns:
        The changed model. `model.fusion_report` says what was fused, and what was left and why.

    Raises:
        TypeError: `model` is no module, or `inplace` no bool.
    """
    check_module("model", model)
    check_flag("inplace", inplace)
    model = model if inplace else copy.deepcopy(model)
    _undo(model)
    report = FusionReport()
    whole = _Whole(model)
    sequences = _Sequences(whole)
    for path, module in list(model.named_modules()):
        if sequences.starts(module):
            sequences.fuse(module, path, report)
        elif _has_code(module):
            _Code(module, path, whole).fuse(report)
    model.fusion_report = report  # type: ignore[assignment]
    return model


def unfuse(model: Model) -> Model:
    """Undoes `fuse`, in place: the modules and the code that it replaced come back.

    A probability or training mode that was changed since is kept. Hooks on fused modules are lost.

    Args:
        model: what `fuse` returned, a copy of it, or a part of it that has fused pairs.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is no module.
        ValueError: it was not fused.
    """
    check_module("model", model)
    if not _undo(model):
        raise ValueError(
            f"model has to be one that fusedact.fuse returned, but this {_kind(model)} was not fused"
        )
    return model


def _kind(value: object) -> str:
    return type(value).__name__


# The two halves of a pair ---------------------------------------------------------------------------

_MODULES: dict[Activation, Callable[..., fused_nn._FusedDropout]] = {
    cls.activation: cls
    for cls in vars(fused_nn).values()
    if isinstance(cls, type) and issubclass(cls, fused_nn._FusedDropout) and cls is not fused_nn._FusedDropout
}


def _spellings(name: str) -> Iterator[tuple[Callable[..., Any], bool]]:
    """PyTorch's functions of that name, and whether each works in place."""
    for namespace in (F, torch, torch.Tensor):
        for suffix in ("", "_"):
            function = getattr(namespace, name + suffix, None)
            if function is not None:
                yield function, bool(suffix)


# Activations that PyTorch has and this library doesn't, so that a report can say so. A softmax is
# followed by dropout everywhere, but is nothing elementwise.
_OTHERS = {
    cls
    for name, cls in vars(nn.modules.activation).items()
    if isinstance(cls, type)
    and cls.__module__ == nn.modules.activation.__name__
    and "Softm" not in name
    and name != "MultiheadAttention"
}
# function -> (row, works in place); row None: dropout, or an activation that isn't fused
_FUNCTIONS: dict[Callable[..., Any], tuple[Activation | None, bool]] = {
    **{function: (None, False) for cls in _OTHERS for function, _ in _spellings(cls.__name__.lower())},
    **{
        function: (row, inplace)
        for row in ACTIVATIONS
        for function, inplace in _spellings(row.eager.__name__)
    },
    **{row.eager: (row, False) for row in ACTIVATIONS},
    F.dropout: (None, False),
}

_CALLABLES = types.FunctionType | types.BuiltinFunctionType | types.MethodDescriptorType

# Modules whose output is a new tensor that no one else holds.
_FRESH = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclasses.dataclass(frozen=True)
class _Half:
    """An activation or a dropout in a model.

    Attributes:
        text: for the report.
        row: the activation's; None for a dropout, and for an activation that isn't fused.
        value: the activation's parameter, or the probability.
        inplace: works in place.
        module: what is called, None if that is a function.
        problem: why it can't be fused.
        guessed: it may be something else.
    """

    text: str
    dropout: bool
    row: Activation | None = None
    value: Any = None
    inplace: bool = False
    module: nn.Module | None = None
    problem: str = ""
    guessed: bool = False


def _is_dropout(module: object) -> bool:
    """Dropout of any kind."""
    return isinstance(module, nn.modules.dropout._DropoutNd)


def _hooked(module: nn.Module) -> bool:
    return any(value and name.endswith("hooks") for name, value in vars(module).items())


def _is_fresh(module: object) -> bool:
    return (
        isinstance(module, _FRESH) and type(module).__module__.startswith("torch.nn.") and not _hooked(module)
    )


@dataclasses.dataclass
class _Found:
    """A pair: its halves, and why it has to be left, empty if it can be fused."""

    activation: _Half
    dropout: _Half
    inplace: bool
    text: str
    reason: str

    def module(self, training: bool) -> fused_nn._FusedDropout:
        """Their fused module; `training` for a dropout that is a function."""
        assert self.activation.row is not None
        parameters = (self.activation.value,) if self.activation.row.parameter else ()
        module = _MODULES[self.activation.row](self.dropout.value, *parameters, self.inplace)
        return module.train(self.dropout.module.training if self.dropout.module else training)


def _found(first: _Half, second: _Half, fresh: bool, reason: str = "") -> _Found | None:
    """The pair that two calls make, one on the other's result; None if they make none.

    `fresh`: no one else reads what the first gets.
    """
    activation, dropout = (second, first) if first.dropout else (first, second)
    if activation.dropout or not dropout.dropout:
        return None
    if first.dropout and (activation.row is None or first.guessed):
        return None
    reason = activation.problem or dropout.problem or reason
    if not reason and first.dropout and activation.row and not activation.row.homogeneous:
        name = activation.row.module.__name__
        reason = f"{name} of a scaled input is not the scaled {name}: dropout has to come after it"
    # In eval mode dropout gives what it got: an activation after it then works on that.
    writer = next(
        (half for half in (first, second) if half.inplace and (half is first or first.dropout)), None
    )
    if not reason and writer and not fresh:
        reason = f"{writer.text} works in place, on a tensor that others may read"
    found = _Found(activation, dropout, first.inplace, f"{first.text} -> {second.text}", reason)
    if not reason:
        try:
            found.module(True)
        except (TypeError, ValueError) as error:
            found.reason = str(error)
    return found


# Replacing and undoing --------------------------------------------------------------------------------


def _identity(input: Any) -> Any:
    """Stands for an activation that was a function in an attribute."""
    return input


def _put(owner: nn.Module, name: str, new: object) -> None:
    """Sets an attribute and notes, on its owner, what was there."""
    old = vars(owner).get(name, owner._modules.get(name, MISSING))
    vars(owner).setdefault("_fusedact_replaced", {})[name] = (() if old is MISSING else (old,), new)
    if not isinstance(new, nn.Module):
        vars(owner)[name] = new
    elif name in owner._modules:
        owner._modules[name] = new  # where the old one was
    else:
        owner.add_module(name, new)


def _undo(model: nn.Module) -> bool:
    """Puts back what `_put` replaced; False if there was nothing that tells of a fusion."""
    fused = False
    for module in list(model.modules()):
        fused |= vars(module).pop("fusion_report", None) is not None
        for name, (old, new) in vars(module).pop("_fusedact_replaced", {}).items():
            fused = True
            current: Any = vars(module).get(name, module._modules.get(name))
            if current is not new:
                continue  # not ours any more
            if not old:
                delattr(module, name)
            elif isinstance(old[0], nn.Module):
                old[0].train(new.training)
                if isinstance(old[0], nn.Dropout) and old[0].p != new.p:
                    old[0].p = new.p
                module._modules[name] = old[0]
            else:
                vars(module)[name] = old[0]
        if isinstance(module, Rewritten):
            module.__class__ = module.original
    return fused


# The model as a whole -----------------------------------------------------------------------------------


def _has_code(module: nn.Module) -> bool:
    """Its methods may hold pairs, or take other modules' parts."""
    name = type(module).__module__
    leaf = name.startswith("torch.nn.") and not module._modules
    return not (
        leaf
        or name == "torch.nn.modules.container"
        or _is_sequence(module)
        or isinstance(module, fused_nn._FusedDropout | torch.jit.ScriptModule)
    )


class _Whole:
    """Where a model's modules stand, and what all of its code does with them.

    Attributes:
        parents: of each module, with its name there.
        methods: of each module that has code.
        others: what code does with attributes of anything but its own `self`; `dynamic` where a forward does.
        stored: attributes that code sets, of anything.
        classes: module classes that it names, perhaps to look for such modules.
        held: modules that lists and dicts of Python hold as well.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parents: dict[nn.Module, list[tuple[nn.Module, str]]] = collections.defaultdict(list)
        self.methods: dict[nn.Module, Methods] = {}
        self.held: set[nn.Module] = set()
        codes: dict[type, Methods] = {}
        for parent in model.modules():
            for name, child in parent._modules.items():
                if child is not None:
                    self.parents[child].append((parent, name))
            for name, value in vars(parent).items():
                if isinstance(value, list | tuple | set | dict) and name != "_modules":
                    items = value.values() if isinstance(value, dict) else value
                    self.held.update(item for item in items if isinstance(item, nn.Module))
            if _has_code(parent):
                cls = type(parent)
                self.methods[parent] = codes[cls] = codes.get(cls) or Methods(cls)
        every = [method for code in codes.values() for method in (*code.all, *code.helpers)]
        self.others = Names(method.others for method in every)
        self.others.dynamic = any(m.others.dynamic for code in codes.values() for m in code.reached)
        self.stored = self.others.stored.union(*(method.own.stored for method in every))
        self.classes = set[type]().union(*(method.classes for method in every)) - {nn.Module}

    def half(self, module: nn.Module) -> _Half | None:
        """What `module` is in a pair."""
        cls, name = type(module), type(module).__name__
        dropout = _is_dropout(module)
        row = next((row for row in ACTIVATIONS if isinstance(module, row.module)), None)
        if not dropout and row is None and cls not in _OTHERS:
            return None
        exact = nn.Dropout if dropout else row.module if row else None
        parameter = "p" if dropout else row.parameter if row else None
        value = getattr(module, parameter) if parameter else None
        text = f"{name}({parameter}={value})" if parameter else name
        problem = ""
        if exact is None or (dropout and cls.__module__.startswith("torch.nn.") and cls is not exact):
            problem = f"no fused kernel for {name}"
        elif cls is not exact:
            problem = f"{name} is a subclass of {exact.__name__} and may do something else"
        elif _hooked(module):
            problem = f"hooks on {name}"
        elif "forward" in vars(module):
            problem = f"forward of this {name} was replaced"
        elif changed := self.others.stored & {parameter, "inplace", "training"}:
            problem = f"code sets .{min(changed)} of modules"
        elif module in self.held:
            problem = f"a list or dict holds this {name} as well"
        elif any(isinstance(module, named) for named in self.classes):
            problem = f"code looks for modules of the class {name}"
        else:
            problem = self.opened(module)
        return _Half(text, dropout, row, value, getattr(module, "inplace", False), module, problem)

    def opened(self, module: nn.Module) -> str:
        """A reason if code does more with the module than call it."""
        for parent, name in self.parents[module]:
            code = self.methods.get(parent)
            if code and any(name in method.own.handed for method in code.all):
                return f"{_kind(parent)} does more with it than call it"
            if name in self.others.handed:
                return f"code elsewhere does more with .{name} than call it"
        return ""


# Neighbours in nn.Sequential --------------------------------------------------------------------------


def _is_sequence(module: nn.Module) -> bool:
    """Calls its children one after the other and does nothing else."""
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and type(module).__call__ is nn.Module.__call__
        and "forward" not in vars(module)
    )


class _Sequences:
    """A model's chains of modules; an `nn.Sequential` in another is part of its chain."""

    def __init__(self, whole: _Whole) -> None:
        self.whole = whole

    def starts(self, module: nn.Module) -> bool:
        """It is a chain of its own."""
        return _is_sequence(module) and not any(
            _is_sequence(parent) and self._joins(module) for parent, _ in self.whole.parents[module]
        )

    def _joins(self, module: nn.Module) -> bool:
        return _is_sequence(module) and len(self.whole.parents[module]) == 1 and not _hooked(module)

    def _links(self, sequence: nn.Module, path: str) -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
        for name, child in sequence._modules.items():
            if child is None:
                continue
            below = f"{path}.{name}" if path else name
            if self._joins(child):
                yield from self._links(child, below)
            else:
                yield sequence, name, child, below

    def _opened(self, sequence: nn.Module) -> str:
        """A reason if code may take the chain's parts: what it sees between them would change."""
        for holder, is_item in self._holders(sequence):
            methods = self.whole.methods[holder].reached
            if any(method.own.dynamic or (is_item and method.opens_items) for method in methods):
                return f"{_kind(holder)} does more with it than call it"
        return self.whole.opened(sequence)

    def _holders(self, module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
        """The modules whose code has `module`; and whether only as an item of a list of modules."""
        for parent, _ in self.whole.parents[module]:
            if parent in self.whole.methods:
                yield parent, False
            else:
                yield from ((holder, True) for holder, _ in self._holders(parent))

    def fuse(self, sequence: nn.Module, path: str, report: FusionReport) -> None:
        links = list(self._links(sequence, path))
        halves = [self.whole.half(child) for _, _, child, _ in links]
        opened = self._opened(sequence)
        for dropout_first in (False, True):
            for i in range(len(links) - 1):
                first, second = halves[i], halves[i + 1]
                if first is None or second is None or first.dropout != dropout_first:
                    continue
                found = _found(first, second, i > 0 and _is_fresh(links[i - 1][2]), opened)
                if found is None:
                    continue
                drop, act = (i, i + 1) if dropout_first else (i + 1, i)
                if found.reason:
                    report.left.append(Pair(links[drop][3], found.text, found.reason))
                    continue
                _put(*links[drop][:2], found.module(sequence.training))
                _put(*links[act][:2], nn.Identity().train(links[act][2].training))
                report.fused.append(Pair(links[drop][3], found.text))
                halves[i] = halves[i + 1] = None


# Pairs in code ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Site:
    """A pair in code.

    Attributes:
        method: where it is.
        first: the call that runs first.
        second: the other, on its result.
        found: the pair.
        activation: the attribute of `self` that is called; empty if it is something else.
        dropout: the same.
    """

    method: Method
    first: ast.Call
    second: ast.Call
    found: _Found
    activation: str
    dropout: str


class _Code:
    """The pairs in one module's methods."""

    def __init__(self, module: nn.Module, path: str, whole: _Whole) -> None:
        self.module, self.path, self.whole = module, path, whole
        self.code = whole.methods[module]
        self.names = Names(method.own for method in self.code.all)
        self.opaque = self.code.opaque or self.names.dynamic or whole.others.dynamic

    def fuse(self, report: FusionReport) -> None:
        reason = ""
        if "forward" in vars(self.module):
            reason = "its forward was replaced"
        elif "forward" in self.code.unreadable:
            reason = f"the source of {_kind(self.module)}.forward can't be read"
        elif looks_up(type(self.module)):
            reason = f"{_kind(self.module)} looks attributes up in a way of its own"
        if reason:
            for child in self.module.children():
                half = self.whole.half(child)
                if half and half.dropout:
                    report.left.append(Pair(self.path, f"? -> {half.text}", reason))
            return
        found = list(self._sites(report))
        sites = []
        for site in found:
            problem = "" if self._is_alone(site, found) else self._fixed(site)
            if problem:
                report.left.append(Pair(self.path, site.found.text, problem))
            else:
                sites.append(site)
        self._replace(sites, report)

    def _replace(self, sites: list[_Site], report: FusionReport) -> None:
        edits: dict[str, list[tuple[int, int, str]]] = collections.defaultdict(list)
        placed: dict[str, nn.Module] = {}
        for site in sites:
            slot = self._slot(site, sites) or self._new_name(site)
            alone = self._is_alone(site, sites)
            if slot not in placed:
                placed[slot] = site.found.module(self.module.training)
                _put(self.module, slot, placed[slot])
                if alone:
                    keeper = site.found.activation.module
                    _put(
                        self.module,
                        site.activation,
                        nn.Identity().train(keeper.training) if keeper else _identity,
                    )
            if not alone:
                nodes = site.method.nodes
                edits[site.method.name].append((nodes.index(site.first), nodes.index(site.second), slot))
            report.fused.append(Pair(f"{self.path}.{slot}" if self.path else slot, site.found.text))
        if edits:
            spec: Edits = tuple(
                (name, self.code.own[name].checksum(), tuple(pairs)) for name, pairs in edits.items()
            )
            cls: Any = type(self.module)
            self.module.__class__ = rewritten(cls, spec)

    def _sites(self, report: FusionReport) -> Iterator[_Site]:
        """The pairs that can be fused; the others go to the report."""
        for method in self.code.all:
            halves = {call: half for call in method.calls if (half := self._half(method, call))}
            taken: set[ast.expr] = set()
            for dropout_first in (False, True):
                for second, half in halves.items():
                    first, reason = method.source(second)
                    if not isinstance(first, ast.Call) or first not in halves or taken & {first, second}:
                        continue
                    if halves[first].dropout != dropout_first:
                        continue
                    found = _found(halves[first], half, self._is_fresh(method, first), reason)
                    if found and found.reason:
                        report.left.append(Pair(self.path, found.text, found.reason))
                    elif found:
                        taken |= {first, second}
                        names = method.called_of_self(first), method.called_of_self(second)
                        yield _Site(method, first, second, found, *(names[::-1] if dropout_first else names))

    def _half(self, method: Method, call: ast.Call) -> _Half | None:
        """What a call is in a pair."""
        callee, value, text = self._resolve(method, call.func), argument(call), ast.unparse(call.func)
        if value is None:
            return None
        if isinstance(callee, nn.Module):
            half = self.whole.half(callee)
            return dataclasses.replace(half, text=text) if half else None
        if callee is MISSING and self._is_item(method, call.func):
            return _Half(text, True, problem=f"what {text} is isn't known beforehand", guessed=True)
        arguments = call.args
        if isinstance(call.func, ast.Attribute) and value is call.func.value:  # x.relu()
            known = self._resolve(method, value) is not MISSING  # an object or a module of Python
            callee = None if known else getattr(torch.Tensor, call.func.attr, None)
            text, arguments = f".{call.func.attr}", [value]
        if not isinstance(callee, _CALLABLES) or callee not in _FUNCTIONS:
            return None
        keywords = {keyword.arg or "**": keyword.value for keyword in call.keywords}
        return self._function_half(method, callee, text, arguments, keywords)

    def _function_half(
        self,
        method: Method,
        function: Callable[..., Any],
        text: str,
        arguments: list[ast.expr],
        keywords: dict[str, ast.expr],
    ) -> _Half | None:
        row, inplace = _FUNCTIONS[function]
        dropout = function is F.dropout
        if not dropout and row is None:
            return _Half(text, False, problem=f"no fused kernel for {function.__name__}")
        try:
            bound = inspect.signature(row.eager if row else F.dropout).bind(*arguments, **keywords)
        except TypeError:
            return None
        bound.apply_defaults()
        parameter = row.parameter if row else "p"
        values = {
            name: self._constant(method, bound.arguments[name]) for name in (parameter, "inplace") if name
        }
        problem = self._training(method, bound.arguments["training"]) if dropout else ""
        for name, value in values.items():
            if value is MISSING and not problem:
                problem = f"{name}={ast.unparse(bound.arguments[name])} isn't known beforehand"
        inplace |= values["inplace"] is True
        return _Half(text, dropout, row, values[parameter] if parameter else None, inplace, None, problem)

    def _is_item(self, method: Method, node: ast.expr) -> bool:
        """`node` is an item of a list of modules, and that may be a dropout."""
        if isinstance(node, ast.Subscript):
            lists = [self._resolve(method, node.value)]
        else:
            lists = list(self.module.children()) if isinstance(node, ast.Name) else []
        lists = [each for each in lists if isinstance(each, nn.ModuleList | nn.ModuleDict)]
        return any(_is_dropout(item) for each in lists for item in each.children())

    def _training(self, method: Method, value: object) -> str:
        if isinstance(value, ast.Attribute) and value.attr == "training" and method.is_self(value.value):
            return ""
        if not isinstance(value, ast.expr) or isinstance(value, ast.Constant):
            return "drops in eval mode too, or never"
        return f"training={ast.unparse(value)} isn't the module's own flag"

    def _resolve(self, method: Method, node: ast.AST) -> Any:
        if any(isinstance(n, ast.Attribute) and n.attr in self.whole.stored for n in ast.walk(node)):
            return MISSING  # not what it is now for good
        return method.resolve(node, self.module)

    def _constant(self, method: Method, value: object) -> Any:
        """The number or bool that an argument is."""
        if isinstance(value, ast.expr):
            try:
                value = ast.literal_eval(value)
            except ValueError:
                value = self._resolve(method, value)  # type: ignore[arg-type]
        return value if isinstance(value, numbers.Real) else MISSING

    def _is_fresh(self, method: Method, call: ast.Call) -> bool:
        """What `call` gets is a module's new output, which no variable holds afterwards."""
        value: ast.AST | None = argument(call)
        if isinstance(value, ast.Name):
            before, name = method.previous(call), value.id
            here = method.parents[call]
            targets = [
                statement.targets[0].id
                for statement in (before, here)
                if isinstance(statement, ast.Assign)
                and len(statement.targets) == 1
                and isinstance(statement.targets[0], ast.Name)
            ]
            if targets != [name, name]:
                return False
            assert isinstance(before, ast.Assign)
            value = before.value
        return isinstance(value, ast.Call) and _is_fresh(self._resolve(method, value.func))

    def _is_alone(self, site: _Site, sites: Iterable[_Site]) -> bool:
        """Both are modules for nothing but each other: replacing them is enough, the code can stay."""
        return (
            self._slot(site, sites) == site.dropout != ""
            and self._is_free(site.activation, site, sites, "activation")
            and all(s.dropout == site.dropout for s in sites if s.activation == site.activation)
            and all(s.activation == site.activation for s in sites if s.dropout == site.dropout)
        )

    def _is_free(self, name: str, site: _Site, sites: Iterable[_Site], half: str) -> bool:
        """Pairs like this one are all that the module's attribute `name` is for."""
        if not name or self.opaque or name in self.whole.others.read or name in self.whole.stored:
            return False
        alike = [s for s in sites if getattr(s, half) == name and _spec(s) == _spec(site)]
        return self.names.read[name] == len(alike)

    def _slot(self, site: _Site, sites: Iterable[_Site]) -> str:
        """The attribute whose module can be replaced by the fused one; empty if there is none."""
        for half in ("dropout", "activation"):
            name: str = getattr(site, half)
            if (
                name in self.module._modules
                and name not in vars(self.module)
                and self._is_free(name, site, sites, half)
            ):
                return name
        return ""

    def _fixed(self, site: _Site) -> str:
        """A reason if the code can't be changed."""
        cls = type(self.module)
        if self.code.own.get(site.method.name) is not site.method:
            return (
                f"{site.method.name} is a base class's that is called by super(): its code can't be changed"
            )
        if not changeable(site.method):
            return f"{site.method.name} is decorated in a way that hides it: its code can't be changed"
        plain = all(getattr(cls, name) is getattr(object, name) for name in ("__reduce__", "__reduce_ex__"))
        if not plain or hasattr(cls, "__deepcopy__"):
            return f"{cls.__name__} is copied in a way of its own: its code can't be changed"
        return ""

    def _new_name(self, site: _Site) -> str:
        assert site.found.activation.row is not None
        base = f"fused_{site.found.activation.row.name}_dropout"
        names = (f"{base}_{i}" if i else base for i in range(len(self.module._modules) + 1))
        return next(name for name in names if not hasattr(self.module, name))


def _spec(site: _Site) -> tuple[object, ...]:
    """What the fused module of a pair is made of."""
    found = site.found
    module = found.dropout.module
    return (
        found.activation.row,
        found.activation.value,
        found.dropout.value,
        found.inplace,
        module and module.training,
    )

"""The pairs of a model as it is now: where they are, whether they can run fused, what code has to change."""

import ast
import builtins
import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .. import _torch
from ..activations import Activation
from . import recognise, rewrite
from .dataflow import BETWEEN, Function, argument, is_method
from .halves import Half, half_of, make_pair, touched
from .pair import CHAIN, Key, calls_of
from .source import Method, contents, find, methods

SINCE = "it joined the model after that was fused"
IN_PLACE = "{} works in place, on a tensor that others may read"
_NOTHING = object()
function = functools.lru_cache(maxsize=4096)(Function)


@dataclass(frozen=True, eq=False)
class Place:
    """Describe a place in a module's code where a pair is called.

    Attributes:
        module: the module.
        path: its name in the model.
        name: of the place, as in "features.1-2" or "mlp.forward: F.relu -> self.drop".
        row: the activation's; None if that is known only while it runs.
        activation: the module that is called for it; None for a function.
        key: of the place, in the module's calls.
        pair: the two, in words.
        reported: the pair's path in the report.
        reason: the reason why it runs as it is written; empty if it can be fused.
    """

    module: nn.Module
    path: str
    name: str
    row: Activation | None
    activation: nn.Module | None
    key: Key
    pair: str
    reported: str
    reason: str

    def watch(self, watcher: Any) -> Callable[[], None]:
        """Give the inputs of the place's activation to `watcher`, fused or not; see `Watcher`.

        A copy of the model, and what is loaded of it, isn't watched.

        Returns:
            A function that ends it.
        """
        calls = calls_of(self.module)
        if calls is None:
            raise ValueError(f"the model must be fused while place {self.name!r} is watched, but it isn't")
        watchers = calls.watchers
        watchers[self.key] = (*watchers.get(self.key, ()), watcher)

        def detach() -> None:
            left = tuple(w for w in watchers.get(self.key, ()) if w is not watcher)
            if left:
                watchers[self.key] = left
            else:
                watchers.pop(self.key, None)

        return detach


@dataclass
class Survey:
    """A model's pairs, and by module and method the nodes that have to change for them.

    Attributes:
        fused: the model is fused: code that hasn't changed is a reason.
        lone: dropouts that follow no activation count as well.
    """

    fused: bool
    lone: bool = False
    places: dict[Any, Place] = field(default_factory=dict)
    roles: dict[nn.Module, dict[Method, dict[int, str]]] = field(default_factory=dict)

    def of(self, model: nn.Module) -> "Survey":
        """Look at all modules of a model."""
        for path, module in model.named_modules():
            name, parts = type(module).__module__, bool(_torch.parts(module))
            if isinstance(module, torch.jit.ScriptModule) or (not parts and name.startswith("torch.nn.")):
                continue
            for method in methods(type(module)):
                for place in _Code(module, path, method, self).places():
                    # One that is found twice, alone and as a part of a longer chain, is fused if either is.
                    apart = "" if isinstance(place.key, tuple) else place.reason
                    key = id(place.module), place.key, place.pair, apart
                    if key not in self.places or not place.reason:
                        self.places[key] = place
        return self


class _Code:
    """One method of one module."""

    def __init__(self, module: nn.Module, path: str, method: Method, survey: Survey) -> None:
        self.module, self.path, self.method, self.survey = module, path, method, survey

    def places(self) -> Iterator[Place]:
        """The method's pairs; the survey's roles for them are set."""
        own = vars(self.module).get("forward") if self.method.name == "forward" else None
        own = getattr(own, "__wrapped__", own)
        bound = getattr(own, "__self__", None), getattr(own, "__func__", None)
        replaced = own is not None and bound != (self.module, type(self.module).forward)
        self.problem = "its forward was replaced" if replaced else rewrite.changeable(self.method)
        if self.method.node is None or replaced:
            # Code that can't be read may call the dropouts that it names.
            for name, child in _torch.parts(self.module).items():
                half = half_of(child)
                if half and half.dropout and name in self.method.names:
                    yield self._found((), f"? -> {half.text}", half, self.problem)
            return
        self.flow: Function = function(self.method.node)
        self.index = {node: i for i, node in enumerate(self.flow.nodes)}
        self.roles: dict[int, str] = {}
        yield from self._chains()
        yield from self._pairs()
        if self.roles and not self.problem:
            self.survey.roles.setdefault(self.module, {})[self.method] = self.roles

    def _found(self, key: Key, text: str, half: Half, reason: str) -> Place:
        name = f"{_join(self.path, self.method.name)}: {text}"
        return Place(self.module, self.path, name, half.row, half.module, key, text, self.path, reason)

    def _since(self, node: ast.AST) -> str:
        """A reason if the model is fused and this isn't."""
        changed = calls_of(self.module) is not None and rewrite.is_changed(self.method, self.index[node])
        return "" if changed or not self.survey.fused else SINCE

    # Pairs of calls ----------------------------------------------------------------------------------

    def _pairs(self) -> Iterator[Place]:
        taken: set[ast.Call] = set()  # of two pairs with a call in common, the first runs fused
        for call in self.flow.calls:
            one = self._half(call, -1)
            if self.survey.lone and one and one.dropout:
                self._role(call, "finish")
            for second, other, path, problem in self._following(call):
                if one is None or call in taken or not make_pair(one, other):
                    continue
                problem = problem or self._looked_up(call, second)
                reason = one.problem or other.problem or problem or self.problem
                inplace = one.inplace or _asks_in_place(call, one)
                producer = self._producer(call) if inplace else None
                if not reason and inplace and producer is None:
                    reason = IN_PLACE.format(self._text(call))
                if not problem and not one.elsewhere and not other.elsewhere:
                    for between in (call, *path, *([producer] if producer else ())):
                        self._role(between, "begin")
                    self._role(second, "finish")
                reason, links = reason or self._since(second), self._opened(second)
                if not reason and len(links) < 2:
                    taken.add(second)
                text = f"{self._text(call)} -> {self._text(second)}"
                key = rewrite.key(self.method, self.index[second])
                place = self._found(key, text, other if one.dropout else one, reason)
                yield replace(place, module=links[0].caller, key=links[0].key) if links else place

    def _following(self, call: ast.Call) -> Iterator[tuple[ast.Call, Half, list[ast.Call], str]]:
        """The calls that get a call's result, what changes nothing in between, and what is in the way."""
        for link in self.flow.links:
            half = self._half(link.second, 0) if link.first is call else None
            if half and not half.identity:
                yield link.second, half, [], link.problem
            elif half:
                for second, other, path, problem in self._following(link.second):
                    yield second, other, [link.second, *path], link.problem or problem

    def _looked_up(self, first: ast.Call, second: ast.Call) -> str:
        """A property in the second call's statement is code that runs between the two."""
        within = set(ast.walk(first))
        looks = (n for n in ast.walk(self.flow.statement(second)) if isinstance(n, ast.Attribute))
        found = (
            inspect.getattr_static(type(self._value(n.value)), n.attr, None) for n in looks if n not in within
        )
        return BETWEEN if any(isinstance(each, property) for each in found) else ""

    def _producer(self, call: ast.Call) -> ast.Call | None:
        """The call of a layer that gives a call's input, if nothing else gets that."""
        firsts = (link.first for link in self.flow.links if link.second is call and not link.problem)
        firsts = (first for first in firsts if argument(first) is not None)
        return next((first for first in firsts if recognise.is_fresh(self._value(first.func))), None)

    def _role(self, node: ast.AST, kind: str) -> None:
        rewrite.add_role(self.roles, self.index[node], kind)

    def _half(self, call: ast.Call, end: int, deep: bool = True) -> Half | None:
        """What a call may be in a pair, by the first (0) or the last (-1) call that it makes in turn."""
        given, callee = argument(call), self._value(call.func)
        for loop in self.flow.loops:
            parts = _parts(self._value(loop.iter)) if call in ast.walk(loop) else ()
            callee = parts[end][1] if parts else callee
        if is_method(call):
            callee = recognise.METHODS[call.func.attr]  # type: ignore[attr-defined]
        if given is None or getattr(given, "id", "") == self.method.self:
            return None
        links = self._opened(call)
        half = half_of(links[end].module if links else ast.unparse(call.func) if callee is None else callee)
        return self._elsewhere(callee, end) if half is None and deep and not links else half

    def _opened(self, call: ast.Call) -> list["_Link"]:
        """What a call calls, one after the other, that changes anything."""
        callee = self._value(call.func)
        links = self._links(callee, "") if self._opens(callee) else ()
        return [link for link in links if not recognise.is_identity(link.module)]

    def _elsewhere(self, callee: Any, end: int) -> Half | None:
        """The same where another method makes that call."""
        module = callee if isinstance(callee, nn.Module) else self.module
        name = "forward" if callee is module else getattr(callee, "__name__", "")
        owner = next((cls for cls in type(module).__mro__ if name in vars(cls)), nn.Module)
        method = find(owner, name)
        if method is None or method.node is None:
            return None
        if callee is not module and callee is not vars(owner)[name]:
            return None
        code = _Code(module, "", method, self.survey)
        code.flow = function(method.node)
        halves = (code._half(call, end, deep=False) for call in code.flow.outer[end])
        found = next((half for half in halves if half and not half.identity), None)
        if found is None:
            return None
        problem = touched(callee) if callee is module else ""
        problem = problem or f"{found.text} is called in another method, {owner.__name__}.{name}"
        return replace(found, problem=problem, elsewhere=True)

    def _text(self, call: ast.Call) -> str:
        return f".{call.func.attr}" if is_method(call) else ast.unparse(call.func)  # type: ignore[attr-defined]

    def _value(self, node: ast.AST) -> Any:
        """What an expression stands for; None if that isn't known."""
        match node:
            case ast.Name(id=name) if name == self.method.self:
                return self.module
            case ast.Name(id=name) if name not in self.flow.variables:
                code, closure = self.method.function.__code__, self.method.function.__closure__ or ()
                cells = dict(zip(code.co_freevars, map(contents, closure), strict=True))
                scopes = cells, self.method.function.__globals__, vars(builtins)
                return next((scope[name] for scope in scopes if name in scope), None)
            case ast.Attribute(value=base, attr=name):
                private = name.startswith("__") and not name.endswith("__")
                name = f"_{self.method.owner.__name__.lstrip('_')}{name}" if private else name
                return _attribute(self._value(base), name)
            case ast.Tuple(elts=each) | ast.List(elts=each):
                return [self._value(one) for one in each]
            case ast.Subscript(value=base, slice=index):
                value = self._value(base)
                parts = _parts(value)
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    if isinstance(index, ast.Slice):
                        bounds = (index.lower, index.upper, index.step)
                        cut: Any = slice(*(bound and ast.literal_eval(bound) for bound in bounds))
                        return [each for _, each in parts[cut]]
                    at = ast.literal_eval(index)
                    return dict(parts)[at] if isinstance(value, dict | nn.ModuleDict) else parts[at][1]
        return None

    # Modules called one after the other ------------------------------------------------------------------

    def _chains(self) -> Iterator[Place]:
        for loop in self.flow.loops:
            self._role(loop, "chain")
            whole = self._value(loop.iter)
            paths = (path for path, module in self.module.named_modules() if module is whole)
            path = _join(self.path, next(paths, ""))
            key = rewrite.key(self.method, self.index[loop])
            links = list(self._links(whole, path, self.module, key))
            yield from self._neighbours(links, self.problem or self._since(loop))

    def _neighbours(self, links: list["_Link"], problem: str) -> Iterator[Place]:
        held: Half | None = None
        at = 0
        for i, link in enumerate(links):
            half = half_of(link.module)
            if half and half.identity:
                continue
            begins, ends = (half or self._elsewhere(link.module, end) for end in (0, -1))
            if held and begins and make_pair(held, begins):
                first = links[at]
                reason = held.problem or begins.problem or problem
                if not reason and held.inplace and not (at and recognise.is_fresh(links[at - 1].module)):
                    reason = IN_PLACE.format(held.text)
                text, name = f"{held.text} -> {begins.text}", f"{_join(first.path, first.name)}-{link.name}"
                activation, where = begins if held.dropout else held, _join(link.path, link.name)
                row, module = activation.row, activation.module
                yield Place(link.caller, link.path, name, row, module, link.key, text, where, reason)
                ends = ends if reason else None  # of two pairs with a module in common, the first runs fused
            held, at = ends, i

    def _opens(self, value: Any) -> bool:
        """It is called one module after the other, as a part of the chain that it stands in."""
        fused = not self.survey.fused or (isinstance(value, nn.Module) and calls_of(value) is not None)
        return fused and recognise.is_sequence(value)

    def _links(self, whole: Any, path: str, caller: Any = None, key: Any = CHAIN) -> Iterator["_Link"]:
        for i, (name, child) in enumerate(_parts(whole)):
            if self._opens(child):
                yield from self._links(child, _join(path, name))
            else:
                yield _Link(caller or whole, path, name, (key, i), child)


@dataclass(frozen=True, eq=False)
class _Link:
    """A module in a chain: who calls it under which key, and its path and name."""

    caller: nn.Module
    path: str
    name: str
    key: Key
    module: nn.Module


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _asks_in_place(call: ast.Call, half: Half) -> bool:
    flags = call.args[3:] if half.dropout else call.args  # F.dropout(input, p, training, inplace)
    by_position = any(isinstance(flag, ast.Constant) and flag.value is True for flag in flags)
    given = (keyword.value for keyword in call.keywords if keyword.arg == "inplace")
    return by_position or any(getattr(flag, "value", None) is not False for flag in given)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What a loop over the value's modules, or an index, gives, with names."""
    if isinstance(value, nn.Module):
        return [(name, child) for name, child in _torch.parts(value).items() if child is not None]
    if isinstance(value, dict):
        return list(value.items())
    return [(str(i), each) for i, each in enumerate(value if isinstance(value, list | tuple) else ())]


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, nn.Module):
        for own in (vars(value), _torch.parts(value)):
            if name in own:
                return _NOTHING if own[name] is None else own[name]
        found = inspect.getattr_static(type(value), name, None)
        found = found.__func__ if isinstance(found, staticmethod) else found
        return None if isinstance(found, property) else found
    return vars(value).get(name) if isinstance(value, types.ModuleType | type) else None

"""The pairs of a model as it is now: where they are, whether they can run fused, what code has to change."""

import ast
import builtins
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import _torch
from ..activations import Activation
from . import recognise, rewrite
from .dataflow import Function, argument, is_method
from .halves import Half, half_of, make_pair
from .pair import CHAIN, Key, calls_of
from .source import Method, contents, methods

SINCE = "it joined the model after that was fused"
IN_PLACE = "{} works in place, on a tensor that others may read"
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
                    key = id(place.module), place.key, place.pair
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
        replaced = own is not None and getattr(own, "__self__", None) is not self.module
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
        halves = {call: list(self._halves(call)) for call in self.flow.calls}
        taken: set[ast.Call] = set()  # of two pairs with a call in common, the first runs fused
        for call, found in halves.items():
            if self.survey.lone and any(half.dropout for half in found):
                self._role(call, "finish")
            for one in found if call not in taken else ():
                inplace = one.inplace or any(keyword.arg == "inplace" for keyword in call.keywords)
                for second, path, problem in () if one.identity else self._reached(call, halves):
                    for other in [other for other in halves[second] if make_pair(one, other)]:
                        reason = one.problem or other.problem or problem or self.problem
                        if not reason and inplace:
                            producers = self._values(self.flow.producer(call)) or [None]
                            fresh = all(map(recognise.is_fresh, producers))
                            reason = "" if fresh else IN_PLACE.format(self._text(call))
                        if not problem:
                            self._role(call, "fresh" if inplace else "begin")
                            for between in path:
                                self._role(between, "begin")
                            self._role(second, "finish")
                        reason = reason or self._since(second)
                        if not reason:
                            taken.add(second)
                        key = rewrite.key(self.method, self.index[second])
                        text = f"{self._text(call)} -> {self._text(second)}"
                        yield self._found(key, text, other if one.dropout else one, reason)

    def _reached(self, call: ast.Call, halves: Any) -> Iterator[tuple[ast.Call, list[ast.Call], str]]:
        """The calls that get a call's result, what changes nothing in between, and what is in the way."""
        for link in self.flow.links:
            if link.first is call:
                yield link.second, [], link.problem
                if any(half.identity for half in halves[link.second]):
                    for second, path, problem in self._reached(link.second, halves):
                        yield second, [link.second, *path], link.problem or problem

    def _role(self, node: ast.AST, kind: str) -> None:
        rewrite.add_role(self.roles, self.index[node], kind)

    def _halves(self, call: ast.Call) -> Iterator[Half]:
        """What a call may be in a pair."""
        if argument(call) is None:
            return
        found = [getattr(torch.Tensor, call.func.attr)] if is_method(call) else self._values(call.func)  # type: ignore[attr-defined]
        if found is None:
            found = [ast.unparse(call.func)]
        for value in found:
            half = half_of(value)
            if half is None and self._opens(value):
                links = list(self._links(value, ""))
                half = half_of(links[-1].module) if links else None
                half = half if half and not half.dropout else None
            if half and not (is_method(call) and getattr(call.func, "value", None) == self.method.self):
                yield half

    def _text(self, call: ast.Call) -> str:
        return f".{call.func.attr}" if is_method(call) else ast.unparse(call.func)  # type: ignore[attr-defined]

    def _values(self, node: ast.AST | None) -> list[Any] | None:
        """All that an expression may stand for; None if that isn't known."""
        match node:
            case ast.Name(id=name) if name == self.method.self:
                return [self.module]
            case ast.Name(id=name) if name not in self.flow.variables:
                code, closure = self.method.function.__code__, self.method.function.__closure__ or ()
                cells = dict(zip(code.co_freevars, map(contents, closure), strict=True))
                scopes = cells, self.method.function.__globals__, vars(builtins)
                return next(([scope[name]] for scope in scopes if name in scope), None)
            case ast.Attribute(value=base, attr=name):
                found = self._values(base)
                return [each for value in found for each in _attribute(value, name)] if found else None
            case ast.Subscript(value=base, slice=index):
                found = self._values(base)
                return [each for value in found for each in _items(value, index)] if found else None
        return None

    # Modules called one after the other ------------------------------------------------------------------

    def _chains(self) -> Iterator[Place]:
        for loop in self.flow.loops:
            self._role(loop, "chain")
            for whole in self._values(loop.iter) or ():
                paths = (path for path, module in self.module.named_modules() if module is whole)
                path = _join(self.path, next(paths, ""))
                key = rewrite.key(self.method, self.index[loop])
                links = list(self._links(whole, path, self.module, key))
                yield from _neighbours(links, self.problem or self._since(loop))

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


def _neighbours(links: list[_Link], problem: str) -> Iterator[Place]:
    held: Half | None = None
    at = 0
    for i, link in enumerate(links):
        half = half_of(link.module)
        if half and half.identity:
            continue
        if held and half and make_pair(held, half):
            first = links[at]
            reason = held.problem or half.problem or problem
            if not reason and held.inplace and not (at and recognise.is_fresh(links[at - 1].module)):
                reason = IN_PLACE.format(held.text)
            text, name = f"{held.text} -> {half.text}", f"{_join(first.path, first.name)}-{link.name}"
            activation, where = half if held.dropout else held, _join(link.path, link.name)
            row, module = activation.row, activation.module
            yield Place(link.caller, link.path, name, row, module, link.key, text, where, reason)
            half = half if reason else None  # of two pairs with a module in common, the first runs fused
        held, at = half, i


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What a loop over the value's modules, or an index, gives, with names."""
    if isinstance(value, nn.Module):
        return [(name, child) for name, child in _torch.parts(value).items() if child is not None]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [(str(i), each) for i, each in enumerate(values)]


def _items(value: Any, index: ast.expr) -> list[Any]:
    """What stands under an index; under one that isn't known, all there is."""
    inside = [each for _, each in _parts(value)]
    if isinstance(index, ast.Slice):
        return [inside]
    try:
        key = ast.literal_eval(index)
        return [inside[key] if isinstance(key, int) else value[key]]
    except (ValueError, LookupError, TypeError):
        return inside


def _attribute(value: Any, name: str) -> list[Any]:
    if isinstance(value, nn.Module):
        for own in (vars(value), _torch.parts(value)):
            if name in own:
                return [own[name]]
        found = inspect.getattr_static(type(value), name, None)
        found = found.__func__ if isinstance(found, staticmethod) else found
        return [] if isinstance(found, property) else [found]
    known = isinstance(value, types.ModuleType | type) and name in vars(value)
    return [vars(value)[name]] if known else []

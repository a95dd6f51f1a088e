"""The pairs of a model as it is now: where they are, whether they can run fused, and what code has to change."""

import ast
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from . import recognise, rewrite
from .dataflow import Function, argument, is_method
from .pair import CHAIN, Key, calls_of
from .recognise import Half
from .resolve import Scope, elements_of
from .rewrite import Role
from .source import Method, methods

SINCE = "it joined the model after that was fused"
_function = functools.lru_cache(maxsize=4096)(lambda node: Function(node))


@dataclass(frozen=True, eq=False)
class Found:
    """A pair.

    Attributes:
        module: whose calls have it.
        path: of that module in the model.
        at: the pair's path in the report.
        name: of its place, in words.
        key: of its place, in the module's calls.
        text: the two halves.
        half: the activation.
        reason: why it runs as it is written; empty if it can be fused.
        callers: in a chain, the modules that call the two.
    """

    module: nn.Module
    path: str
    at: str
    name: str
    key: Key
    text: str
    half: Half
    reason: str
    callers: tuple[nn.Module, ...] = ()


@dataclass
class Survey:
    """A model's pairs, and by module the code that has to change for them."""

    pairs: dict[Any, Found] = field(default_factory=dict)
    roles: dict[nn.Module, dict[Method, set[Role]]] = field(default_factory=dict)

    def add(self, found: Iterable[Found]) -> None:
        """Add pairs. One that is found twice, alone and as a part of a longer chain, is fused if either is."""
        for pair in found:
            key = id(pair.module), pair.key, pair.text
            if key not in self.pairs or not pair.reason:
                self.pairs[key] = pair


def survey(model: nn.Module, lone_dropout: bool = False, fused: bool = False) -> Survey:
    """Look at all modules of a model; of one that is `fused`, at what code of it isn't changed."""
    result = Survey()
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for method in methods(type(module)):
            if _may_have_pairs(module, method):
                _Code(module, path, method, lone_dropout, fused).look(result)
    return result


def _may_have_pairs(module: nn.Module, method: Method) -> bool:
    cls = type(module)
    if cls.__module__.startswith("torch.nn.modules.") and not module._modules:
        return False
    return cls.__module__ != "torch.nn.modules.container" or isinstance(module, nn.Sequential)


class _Code:
    """One method of one module."""

    def __init__(self, module: nn.Module, path: str, method: Method, lone_dropout: bool, fused: bool) -> None:
        self.module, self.path, self.method, self.lone = module, path, method, lone_dropout
        self.fused = fused
        self.changed: Callable[[int], bool] = lambda index: True

    def look(self, result: Survey) -> None:
        """Add what is found."""
        method, module = self.method, self.module
        own = vars(module).get("forward")
        own = getattr(own, "__wrapped__", own)
        if method.node is None or (
            method.name == "forward" and own is not None and getattr(own, "__self__", None) is not module
        ):
            reason = "its forward was replaced" if own is not None else rewrite.changeable(method)
            result.add(self._hidden(reason))
            return
        self.flow: Function = _function(method.node)
        self.scope = Scope(module, method, self.flow)
        self.index = {node: i for i, node in enumerate(self.flow.nodes)}
        problem = rewrite.changeable(method)
        if self.fused and not problem:
            marked = calls_of(module) is not None
            self.changed = lambda index: marked and rewrite.is_changed(method, index)
        roles: set[Role] = set()
        result.add(self._pairs(problem, roles))
        result.add(self._chains(problem, roles))
        if roles and not problem:
            result.roles.setdefault(module, {})[method] = roles

    def _hidden(self, reason: str) -> Iterator[Found]:
        """The module's dropouts that code which can't be read may call."""
        for name, child in self.module._modules.items():
            half = recognise.half(child)
            if half and half.dropout and name in self.method.names:
                text = f"? -> {half.text}"
                yield self._found((), text, half, reason)

    # Pairs of calls ----------------------------------------------------------------------------------

    def _pairs(self, problem: str, roles: set[Role]) -> Iterator[Found]:
        halves = {call: self._halves(call) for call in self.flow.calls}
        following: dict[ast.Call, list[Any]] = {}
        for link in self.flow.links:
            following.setdefault(link.first, []).append(link)
        taken: set[ast.Call] = set()  # of two pairs with a call in common, the first runs fused
        for first, found in halves.items():
            for one in found:
                if one.identity or first in taken:
                    continue
                for second, reason, between in self._reached(first, following, halves):
                    for other in halves[second]:
                        if not recognise.make_pair(one, other):
                            continue
                        activation = other if one.dropout else one
                        why = one.problem or other.problem or reason or problem
                        why = why or self._in_place(one, first)
                        why = why or ("" if self.changed(self.index[second]) else SINCE)
                        if not reason:
                            self._role(first, one, roles)
                            for call in between:
                                roles.add(Role(self.index[call], "begin"))
                            roles.add(Role(self.index[second], "finish"))
                        if not why:
                            taken.add(second)
                        text = f"{self._text(first)} -> {self._text(second)}"
                        yield self._found(rewrite.key(self.method, self.index[second]), text, activation, why)
        if self.lone:
            for call, found in halves.items():
                if any(half.dropout for half in found):
                    roles.add(Role(self.index[call], "finish"))

    def _role(self, call: ast.Call, half: Half, roles: set[Role]) -> None:
        roles.add(Role(self.index[call], "fresh" if half.inplace or self._says_inplace(call) else "begin"))

    def _reached(
        self, first: ast.Call, following: Any, halves: Any
    ) -> Iterator[tuple[ast.Call, str, list[ast.Call]]]:
        """The calls that get the result of `first`, directly or through modules that change nothing."""
        for link in following.get(first, ()):
            yield link.second, link.problem, []
            if any(half.identity for half in halves[link.second]):
                for second, problem, between in self._reached(link.second, following, halves):
                    yield second, link.problem or problem, [link.second, *between]

    def _halves(self, call: ast.Call) -> list[Half]:
        """What a call may be in a pair."""
        if argument(call) is None:
            return []
        if is_method(call):
            half = recognise.half(getattr(torch.Tensor, call.func.attr))  # type: ignore[attr-defined]
            return [half] if half and not self.scope.is_self(call.func.value) else []  # type: ignore[attr-defined]
        values = self.scope.values(call.func)
        if values is None:
            half = recognise.by_name(ast.unparse(call.func))
            return [half] if half else []
        found: dict[Half, None] = {}
        for value in values:
            half = recognise.half(value)
            if half is None and recognise.is_sequence(value):
                links = list(_links(value, ""))
                half = recognise.half(links[-1].module) if links else None
                half = half if half and not half.dropout else None
            if half:
                found[half] = None
        return list(found)

    def _in_place(self, one: Half, first: ast.Call) -> str:
        if one.inplace or self._says_inplace(first):
            producer = self.flow.producer(first)
            values = self.scope.values(producer)
            if not values or not all(map(recognise.is_fresh, values)):
                return f"{self._text(first)} works in place, on a tensor that others may read"
        return ""

    def _says_inplace(self, call: ast.Call) -> bool:
        return any(keyword.arg == "inplace" for keyword in call.keywords)

    def _text(self, call: ast.Call) -> str:
        text = ast.unparse(call.func)
        if isinstance(call.func, ast.Attribute) and argument(call) is call.func.value:
            return f".{call.func.attr}"
        return text

    def _found(self, key: Key, text: str, half: Half, reason: str) -> Found:
        name = f"{self.path}.{self.method.name}" if self.path else self.method.name
        return Found(self.module, self.path, self.path, f"{name}: {text}", key, text, half, reason)

    # Modules called one after the other ------------------------------------------------------------------

    def _chains(self, problem: str, roles: set[Role]) -> Iterator[Found]:
        for loop in self.flow.loops:
            whole = self.scope.values(loop.node.iter)
            elements = whole and [(v, elements_of(v)) for v in whole]
            if not elements or any(each is None for _, each in elements):
                continue
            index = self.index[loop.node]
            key = rewrite.key(self.method, index)
            roles.add(Role(index, "chain"))
            for value, each in elements:
                paths = {id(m): p for p, m in self.module.named_modules()}
                base = paths.get(id(value), "") if isinstance(value, nn.Module) else ""
                links = list(_chain(self.module, each, join(self.path, base), key))
                for pair in _neighbours(links, problem):
                    callers = {self.module, *pair.callers}
                    joined = not self.changed(index) or (self.fused and None in map(calls_of, callers))
                    yield replace(pair, reason=SINCE) if joined and not pair.reason else pair


@dataclass(frozen=True, eq=False)
class _Element:
    """A module in a chain: who calls it under which key, and its path."""

    caller: nn.Module
    path: str
    key: Key
    module: nn.Module


def _chain(caller: nn.Module, children: Any, path: str, key: Any) -> Iterator[_Element]:
    names = {id(child): name for name, child in caller._modules.items()}
    for i, child in enumerate(children):
        name = names.get(id(child), str(i))
        if recognise.is_sequence(child):
            yield from _links(child, join(path, name))
        else:
            yield _Element(caller, join(path, name), (key, i), child)


def _links(sequence: nn.Module, path: str) -> Iterator[_Element]:
    return _chain(sequence, elements_of(sequence), path, CHAIN)


def join(path: str, name: str) -> str:
    """The path of a submodule."""
    return f"{path}.{name}" if path and name else path or name


def _neighbours(links: list[_Element], problem: str) -> Iterator[Found]:
    held: tuple[int, Half] | None = None
    for i, link in enumerate(links):
        half = recognise.half(link.module)
        if half and half.identity:
            continue
        if held and half and recognise.make_pair(held[1], half):
            at, one = held
            first = links[at]
            reason = one.problem or half.problem or problem
            if not reason and one.inplace and not (at and recognise.is_fresh(links[at - 1].module)):
                reason = f"{one.text} works in place, on a tensor that others may read"
            parent, _, last = link.path.rpartition(".")
            text, name = f"{one.text} -> {half.text}", f"{first.path}-{last}"
            activation = half if one.dropout else one
            callers = first.caller, link.caller
            yield Found(link.caller, parent, link.path, name, link.key, text, activation, reason, callers)
            half = half if reason else None  # of two pairs with a module in common, the first runs fused
        held = (i, half) if half else None

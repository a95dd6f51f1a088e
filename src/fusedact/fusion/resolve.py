"""What names, dots and indices in a method's code stand for, in one module, as it is now."""

import ast
import builtins
import inspect
import types
from collections.abc import Iterable
from typing import Any

from torch import nn

from .dataflow import Function
from .source import Method, contents

_THROUGH = {"enumerate", "iter", "list", "reversed", "tuple"}
_CONTAINERS = (nn.Sequential, nn.ModuleList)


class Scope:
    """A method of one module.

    Attributes:
        module: what `self` is.
        method: the method.
        flow: what its values do.
    """

    def __init__(self, module: nn.Module, method: Method, flow: Function) -> None:
        self.module, self.method, self.flow = module, method, flow
        function = method.function
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self.cells = {name: contents(cell) for name, cell in cells}

    def is_self(self, node: ast.AST) -> bool:
        """It is the name of the method's first parameter."""
        return isinstance(node, ast.Name) and node.id == self.method.self

    def values(self, node: ast.AST | None, seen: frozenset[str] = frozenset()) -> list[Any] | None:
        """All that the expression may stand for; None if that isn't known."""
        match node:
            case ast.Name() if self.is_self(node):
                return [self.module]
            case ast.Name(id=name):
                return self._variable(name, seen)
            case ast.Attribute(value=base, attr=name):
                return _each(self.values(base, seen), lambda value: _attribute(value, name))
            case ast.Call(func=ast.Name(id="getattr"), args=[base, ast.Constant(value=str(name)), *_]):
                return _each(self.values(base, seen), lambda value: _attribute(value, name))
            case ast.Subscript(value=base, slice=index):
                return _each(self.values(base, seen), lambda value: _items(value, index))
            case ast.IfExp(body=one, orelse=other):
                return _union([self.values(one, seen), self.values(other, seen)])
        return None

    def _variable(self, name: str, seen: frozenset[str]) -> list[Any] | None:
        if name in seen:
            return []
        stores = [n for n in self.flow.names if n.id == name and not isinstance(n.ctx, ast.Load)]
        if stores:
            return _union([self._bound(n, seen | {name}) for n in stores])
        if any(isinstance(n, ast.arg) and n.arg == name for n in self.flow.nodes):
            return None
        scopes = (self.cells, self.method.function.__globals__, vars(builtins))
        return next(([scope[name]] for scope in scopes if name in scope), None)

    def _bound(self, name: ast.Name, seen: frozenset[str]) -> list[Any] | None:
        """What the variable stands for after `name` was set."""
        parent: ast.AST = name
        while isinstance(parent, ast.Name | ast.Tuple):
            child, parent = parent, self.flow.parents[parent]
        match parent:
            case ast.Assign(targets=targets, value=value) if name in targets:
                return self.values(value, seen)
            case ast.AnnAssign(value=value) | ast.NamedExpr(value=value):
                return self.values(value, seen)
            case ast.For(iter=whole) | ast.comprehension(iter=whole) if child is parent.target:
                return self._element(child, whole, name, seen)
        return None

    def _element(
        self, target: ast.AST, whole: ast.AST, name: ast.Name, seen: frozenset[str]
    ) -> list[Any] | None:
        """What `name`, in a loop's target, is when the loop goes over `whole`."""
        elements = target.elts if isinstance(target, ast.Tuple) else []
        match whole:
            case ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]) if len(elements) == 2:
                return self._element(elements[1], inner, name, seen) if elements[0] is not name else None
            case ast.Call(func=ast.Name(id="zip"), args=inners) if len(elements) == len(inners):
                pairs = zip(elements, inners, strict=True)
                inner = next(((e, i) for e, i in pairs if name in ast.walk(e)), None)
                return inner and self._element(*inner, name, seen)
            case ast.Call(func=ast.Name(id=function), args=[inner, *_]) if function in _THROUGH:
                return self._element(target, inner, name, seen)
            case ast.Call(func=ast.Attribute(value=inner, attr="values" | "children"), args=[]):
                return self._element(target, inner, name, seen)
            case ast.Call(func=ast.Attribute(value=inner, attr="items"), args=[]) if len(elements) == 2:
                return self._element(elements[1], inner, name, seen)
        return _each(self.values(whole, seen), elements_of) if target is name else None


def elements_of(value: Any) -> list[Any] | None:
    """What a loop over the value's modules, or an index, gives; None if that isn't known."""
    if isinstance(value, nn.Module):
        return [child for child in value._modules.values() if child is not None]
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else None


def _items(value: Any, index: ast.expr) -> list[Any] | None:
    elements = elements_of(value)
    if elements is None:
        return None
    try:
        key = ast.literal_eval(index)
        return [elements[key] if isinstance(key, int) else value[key]]
    except (ValueError, LookupError, TypeError):
        return [elements] if isinstance(index, ast.Slice) else elements


def _attribute(value: Any, name: str) -> list[Any] | None:
    if isinstance(value, nn.Module):
        for own in (vars(value), value._modules):
            if name in own:
                return [own[name]]
        found = inspect.getattr_static(type(value), name, None)
        found = found.__func__ if isinstance(found, staticmethod) else found
        return None if found is None or isinstance(found, property) else [found]
    if isinstance(value, types.ModuleType | type):
        return [vars(value)[name]] if name in vars(value) else None
    return None


def _each(values: list[Any] | None, function: Any) -> list[Any] | None:
    return None if values is None else _union(function(value) for value in values)


def _union(parts: Iterable[list[Any] | None]) -> list[Any] | None:
    union: list[Any] = []
    for part in parts:
        if part is None:
            return None
        union += part
    return union

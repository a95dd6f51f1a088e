"""Functions whose code is changed where they stand: in fused modules, marked calls go through `Calls`.

A function that is changed stays the same object, in the same class, with the same signature, closure and
decorators. It begins with a look whether `self` is fused; if not, what was written runs as it was.
"""

import ast
import copy
import itertools
import types
import zlib
from typing import Any, NamedTuple

from .._torch import UNSTORED
from .dataflow import Function, argument, is_method
from .pair import CHAIN, Calls
from .source import LOCK, Method, compiled, find, originals

_CALLS = "_fusedact"


class Change(NamedTuple):
    """A function's roles, in a form that another process understands.

    Attributes:
        owner: the class that has the function.
        name: its name there.
        checksum: of its source.
        roles: what becomes of nodes of its syntax tree, by their index in `ast.walk`'s order: "begin" or
            "finish", as in `Calls`; "chain" for a loop.
    """

    owner: type
    name: str
    checksum: int
    roles: dict[int, str]


_roles: dict[types.FunctionType, dict[int, str]] = {}
_SIMPLE = ast.Assign | ast.AnnAssign | ast.Return | ast.Expr
_STRENGTH = ("", "finish", "begin", "chain")


def key(method: Method, index: int) -> str:
    """The name of a place in a module's code."""
    function = method.function
    if function.__module__ == "torch.nn.modules.container":
        return CHAIN
    return f"{function.__qualname__}:{function.__code__.co_firstlineno}:{index}"


def changeable(method: Method) -> str:
    """Why a method's code can't be changed; empty if it can."""
    if method.node is None:
        return f"the source of {method.owner.__name__}.{method.name} can't be read"
    function = Function(method.node)
    code = originals.get(method.function, method.function.__code__)
    stored = {n.id for n in function.names if not isinstance(n.ctx, ast.Load)} | function.declared
    selves = sum(isinstance(n, ast.arg) and n.arg == method.self for n in function.nodes)
    if selves != 1 or method.self in stored:
        return f"{method.name} has no self to tell whether the module is fused"
    variables = {*function.variables, *code.co_varnames, *code.co_cellvars, *code.co_freevars}
    if (
        variables & {"getattr", _CALLS}
        or "getattr" in method.function.__globals__
        or function.evaluates
        or function.declares
    ):
        return f"{method.name} looks variables up in a way of its own"
    return ""


def add_role(roles: dict[int, str], index: int, kind: str) -> None:
    """A node's role, beside those that it has."""
    roles[index] = max(kind, roles.get(index, ""), key=_STRENGTH.index)


def change(method: Method, roles: dict[int, str]) -> Change | None:
    """Change a method's code for all instances of its class that are fused; None if that isn't possible."""
    assert method.node is not None
    known = dict(_roles.get(method.function, {}))
    for index, kind in roles.items():
        add_role(known, index, kind)
    if known != _roles.get(method.function):
        code = compiled(method, _Rewriter(method, known).body())
        if code is None:
            return None
        originals.setdefault(method.function, method.function.__code__)
        method.function.__code__ = code
        _roles[method.function] = known
    return Change(method.owner, method.name, _checksum(method), roles)


def is_changed(method: Method, index: int) -> bool:
    """The node of that index goes through the calls of modules that are fused."""
    return index in _roles.get(method.function, {})


def revive(changes: tuple[Change, ...], lone_dropout: bool) -> Calls:
    """The calls of a module that is loaded, perhaps in another process, whose code is changed likewise.

    Where the source is another now, the module runs as it is written.
    """
    with LOCK:
        for owner, name, checksum, roles in changes:
            method = find(owner, name)
            if method is not None and not changeable(method) and _checksum(method) == checksum:
                change(method, roles)
    return Calls(changes, lone_dropout)


def _checksum(method: Method) -> int:
    return zlib.crc32(ast.dump(method.node).encode()) if method.node else 0


class _Rewriter(ast.NodeTransformer):
    def __init__(self, method: Method, roles: dict[int, str]) -> None:
        self.method, self.function_node = method, copy.deepcopy(method.node)
        assert self.function_node is not None
        self.flow = Function(self.function_node)
        self.roles = {self.flow.nodes[index]: (index, kind) for index, kind in roles.items()}
        self.joined: set[ast.Call] = set()

    def body(self) -> list[ast.stmt]:
        """Both bodies: for modules that are fused, and as it was written."""
        node = self.function_node
        assert node is not None
        written = copy.deepcopy(node.body)
        for parent in self.flow.nodes:
            for _, block in ast.iter_fields(parent):
                if isinstance(block, list):
                    self._join_statements(block)
        fused = [self.visit(statement) for statement in node.body]
        get = f"getattr(getattr({self.method.self}, '{UNSTORED}', None), 'fusedact', None)"
        choice: Any = ast.parse(f"if ({_CALLS} := {get}) is None: pass\nelse: pass").body[0]
        for new in ast.walk(choice):
            ast.copy_location(new, node.body[0])
        first = 1 if ast.get_docstring(node) is not None else 0
        choice.body, choice.orelse = written[first:] or choice.body, fused[first:] or choice.orelse
        return [*written[:first], choice]

    def _join_statements(self, block: list[Any]) -> None:
        """Make one of two statements that are a pair: where both are at hand, nothing is put off."""
        for one, two in list(itertools.pairwise(block)):
            match one, two:
                case (
                    ast.Assign([ast.Name(name)], ast.Call(_, [_], []) as act),
                    ast.Assign(value=ast.Call(_, [ast.Name(passed)], []) as drop)
                    | ast.Return(ast.Call(_, [ast.Name(passed)], []) as drop),
                ) if (
                    passed == name
                    and (self._kind(act), self._kind(drop)) == ("begin", "finish")
                    and self._is_part(drop.func)
                    and not self.flow.is_rescued(two)
                    # What a `del` deletes must be there.
                    and not any(n.id == name and isinstance(n.ctx, ast.Del) for n in self.flow.names)
                ):
                    drop.args = [act]
                    self.joined.add(drop)
                    block.remove(one)

    def _kind(self, node: ast.AST) -> str:
        return self.roles.get(node, (0, ""))[1]

    def _is_part(self, callee: ast.expr) -> bool:
        """It is an attribute of `self` by the name that is written, which private ones are not."""
        match callee:
            case ast.Attribute(ast.Name(self.method.self), name):
                return not name.startswith("__")
        return False

    def visit(self, node: ast.AST) -> Any:
        """Where a statement's error may be caught, the variables that it got then hold real values."""
        held = []
        if isinstance(node, _SIMPLE) and self.flow.is_rescued(node):
            given = [argument(n) for n in ast.walk(node) if isinstance(n, ast.Call) and n in self.roles]
            held = [each.id for each in given if isinstance(each, ast.Name) and self.flow.is_set(each)]
        new = super().visit(node)
        if not held:
            return new
        settle = "; ".join(f"{name} = {_CALLS}.settled({name})" for name in held)
        rescue: Any = ast.parse(f"try: pass\nexcept: {settle}; raise").body[0]
        for each in ast.walk(rescue):
            ast.copy_location(each, node)
        rescue.body = [new]
        return rescue

    def visit_Call(self, call: ast.Call) -> ast.AST:
        self.generic_visit(call)
        if call not in self.roles:
            return call
        index, kind = self.roles[call]
        callee: Any = call.func
        args, at = call.args, ast.Constant(key(self.method, index))
        match args:
            case [ast.Call(ast.Attribute(ast.Name(calls), "begin"), [first, act, x], [])] if (
                kind == "finish" and calls == _CALLS and not call.keywords
            ):
                name = []
                if call in self.joined:
                    callee, name = callee.value, [ast.Constant(callee.attr)]
                return self._call(call, "pair", [first, at, self._part(callee), act, x, *name], [])
        if is_method(call):
            args, callee = [callee.value], self._call(callee, "method", [ast.Constant(callee.attr)], [])
        return self._call(call, kind, [at, self._part(callee), *args], call.keywords)

    def _part(self, callee: Any) -> ast.expr:
        """The same, a child of `self` looked up faster."""
        if not self._is_part(callee):
            return callee  # type: ignore[no-any-return]
        return self._call(callee, "part", [callee.value, ast.Constant(callee.attr)], [])

    def visit_For(self, node: ast.For) -> ast.AST:
        index, kind = self.roles.get(node, (0, ""))
        if not kind:
            self.generic_visit(node)
            return node
        assign: Any = node.body[0]
        arguments = [ast.Constant(key(self.method, index)), node.iter, assign.value.args[0]]
        assign.value = self._call(node, "chain", arguments, [])
        assign.value.end_lineno = assign.end_lineno
        moved: ast.AST = ast.copy_location(assign, node)
        return moved

    def _call(self, old: ast.AST, name: str, arguments: Any, keywords: list[ast.keyword]) -> ast.Call:
        callee = ast.Attribute(ast.Name(_CALLS, ast.Load()), name, ast.Load())
        new = ast.copy_location(ast.Call(callee, arguments, keywords), old)
        return ast.fix_missing_locations(new)

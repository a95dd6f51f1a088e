"""What the methods of a module's class say: read from their source.

`fusedact.fuse` finds pairs in source, not in a trace of `torch.fx`: that follows one branch only, stops
at what depends on data, and holds `self.training` as it was while tracing; its result is a module of
another class. Source shows every branch, and what isn't replaced runs on as it was written. It is
believed only if it compiles to the very bytecode that runs.
"""

import ast
import collections
import copy
import functools
import inspect
import linecache
import types
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .activations import ROWS

MISSING: Any = object()
_GETATTR: Any = vars(nn.Module)["__getattr__"]

# What may stand between a statement and a call in it that runs exactly once, before any other call.
_STRAIGHT = (ast.Call, ast.BinOp, ast.Attribute, ast.keyword, ast.Tuple, ast.Assign, ast.Return)
_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.GeneratorExp,
    ast.Try,
    ast.Global,
    ast.Nonlocal,
)
# PyTorch's modules around models, which know no model's names.
_WRAPPERS = ("torch.nn.parallel.", "torch.distributed.", "torch.optim.", "torch._dynamo.")
_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict
_ITERATORS = {"enumerate", "iter", "list", "reversed", "tuple", "zip"}
_EVALUATORS = {"eval", "exec", "globals", "locals", "vars"}
_BY_NAME = {"delattr", "getattr", "setattr"}
_ADDERS = {"add_module", "register_module", "set_submodule"}
# Not `modules`, which gives the module itself too: code that calls what it gives is no forward.
_CHILDREN = {"__dict__", "_modules", "children", "get_submodule", "named_children"}
# What a module may be asked for (and its activation's parameter), and the functions that it may be given
# to, and it stays what it is.
_FIGURES = {"inplace", "p", "training"}
_HARMLESS = {"callable", "hasattr", "id", "isinstance", "len", "super", "type", *_BY_NAME}


class Names:
    """What code does with the attributes of something.

    Attributes:
        read: how often it reads each.
        stored: those that it sets.
        handed: those that it does more with than call them: index, iterate, change, rename.
        dynamic: it looks some up by other means than their names.
    """

    def __init__(self, parts: Iterable["Names"] = ()) -> None:
        self.read: collections.Counter[str] = collections.Counter()
        self.stored: set[str] = set()
        self.handed: set[str] = set()
        self.dynamic = False
        for part in parts:
            self.read.update(part.read)
            self.stored |= part.stored
            self.handed |= part.handed
            self.dynamic |= part.dynamic


class Method:
    """A method, or a function that methods call, and its source.

    Attributes:
        name: the attribute of the class.
        attribute: what the class has under that name.
        function: the function, without decorators.
        owner: the name of the class that it stands in.
        node: its syntax tree.
        self: the name of its first parameter; empty if that is not what it says throughout, and of a
            function.
        nodes: `node` and all below it, in `ast.walk`'s order.
        calls: its calls, in the order of their ends.
        own: what it does with attributes of `self`; `dynamic` too where it gives `self` away.
        others: what it does with attributes of anything else but Python modules.
        classes: module classes that it names other than to call them: it may look for such modules.
        opens_items: it indexes or iterates over what it got by indexing or iterating.
    """

    def __init__(
        self,
        name: str,
        attribute: Any,
        function: types.FunctionType,
        owner: str,
        node: ast.FunctionDef,
        has_self: bool,
    ) -> None:
        self.name, self.attribute, self.function = name, attribute, function
        self.owner, self.node = owner, node
        self.nodes = list(ast.walk(node))
        self.calls = sorted((n for n in self.nodes if isinstance(n, ast.Call)), key=_end)
        self.parents = {child: parent for parent in self.nodes for child in ast.iter_child_nodes(parent)}
        self.nested = any(isinstance(n, _SCOPES) for n in self.nodes if n is not node)
        self.evaluates = any(isinstance(n, ast.Name) and n.id in _EVALUATORS for n in self.nodes)
        bound = collections.Counter(name for n in self.nodes if n is not node for name in _binds(n))
        self.locals = set(bound)
        parameters = [*node.args.posonlyargs, *node.args.args] if has_self else []
        self.self = parameters[0].arg if parameters and bound[parameters[0].arg] == 1 else ""
        self.cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self.own, self.others = Names(), Names()
        self.own.dynamic = self.others.dynamic = self.evaluates
        for n in self.nodes:
            self._note(n)
        named = [self.resolve(n) for n in self.nodes if not self._is_called(n)]
        self.classes = {cls for cls in named if isinstance(cls, type) and issubclass(cls, nn.Module)}
        self.opens_items = self._opens_items()

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Attribute(value=base, attr=name, ctx=ast.Load()):
                self._note_read(base, name, not self._stays_whole(node))
            case (
                ast.Attribute(value=base, attr=name)
                | ast.Subscript(value=ast.Attribute(value=base, attr=name), ctx=ast.Store() | ast.Del())
            ):
                self._names(base).stored.add(name)
            case ast.Call(func=ast.Name(id="getattr"), args=[base, ast.Constant(value=str(name)), *_]):
                self._note_read(base, name, True)
            case ast.Call(
                func=ast.Name(id="setattr" | "delattr"), args=[base, ast.Constant(value=str(name)), *_]
            ):
                self._names(base).stored.add(name)
            case ast.Call(func=ast.Attribute(attr=adder), args=[ast.Constant(value=str(path)), *_]) if (
                adder in _ADDERS
            ):
                self.others.stored.update(path.split("."))
            case ast.Call(func=ast.Name(id=function), args=[base, *_]) if function in _BY_NAME:
                self._names(base).dynamic = True
            case ast.Name(id=function) if function in _BY_NAME and not self._is_called(node):
                self.own.dynamic = self.others.dynamic = True
            case ast.Name() if self.is_self(node) and not self._stays_whole(node):
                self.own.dynamic = True

    def _note_read(self, base: ast.expr, name: str, handed: bool) -> None:
        names = self._names(base)
        names.read[name] += 1
        if handed:
            names.handed.add(name)
        names.dynamic |= name in _CHILDREN
        self.others.dynamic |= name == "get_submodule"  # which goes on to the children's children

    def _names(self, base: ast.expr) -> Names:
        if self.is_self(base):
            return self.own
        return Names() if isinstance(self.resolve(base), types.ModuleType) else self.others

    def _is_called(self, node: ast.AST) -> bool:
        parent = self.parents.get(node)
        return isinstance(parent, ast.Call) and node is parent.func

    def _stays_whole(self, node: ast.expr) -> bool:
        """What `node` stands for is called, or asked about: nothing takes it apart or gives it a new name."""
        match self.parents[node]:
            case ast.Attribute(attr=name, ctx=context):
                figure = name in _FIGURES or any(name == row.parameter for row in ROWS.values())
                return self.is_self(node) or (figure and isinstance(context, ast.Load))
            case ast.Call(func=function) if node is not function:
                if isinstance(function, ast.Name) and function.id in _HARMLESS:
                    return True
                return not self.is_self(node) and _is_torchs(self.resolve(function))
            case ast.Call() | ast.Compare() | ast.UnaryOp():
                return True
            case ast.BoolOp() as parent:
                return self._stays_whole(parent)
            case ast.If(test=test) | ast.IfExp(test=test):
                return node is test
            case ast.Return():
                return self.is_self(node)
        return False

    def _opens_items(self) -> bool:
        items: set[str] = set()
        opened: list[ast.expr] = []
        for node in self.nodes:
            match node:
                case ast.For(target=target, iter=whole) | ast.comprehension(target=target, iter=whole):
                    items.update(name for n in ast.walk(target) for name in _binds(n))
                    opened += _iterated(whole)
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript()):
                    items.add(name)
                case ast.Subscript(value=whole) | ast.Starred(value=whole):
                    opened.append(whole)
                case ast.Call(func=function, args=arguments):
                    callee = self.resolve(function)
                    if isinstance(callee, types.FunctionType) and not _is_torchs(callee):
                        opened += arguments
        return any(isinstance(n, ast.Subscript) or getattr(n, "id", None) in items for n in opened)

    def is_self(self, node: ast.AST) -> bool:
        """Whether it is the name of the method's first argument."""
        return isinstance(node, ast.Name) and node.id == self.self

    def resolve(self, node: ast.AST, module: nn.Module | None = None) -> Any:
        """What names, dots and constant keys stand for where `self` is `module`; MISSING if unsure."""
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value, module)
            if isinstance(base, types.ModuleType) or base is torch.Tensor:
                return getattr(base, node.attr, MISSING)
            return _held(base, node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            base = self.resolve(node.value, module)
            parts = base._modules if type(base) in _CONTAINERS else {}
            return parts.get(str(node.slice.value), MISSING)
        if not isinstance(node, ast.Name):
            return MISSING
        if self.is_self(node):
            return MISSING if module is None else module
        if node.id in self.locals:
            return MISSING
        if node.id in self.cells:
            return contents(self.cells[node.id])
        return self.function.__globals__.get(node.id, MISSING)

    def called_of_self(self, call: ast.Call) -> str:
        """The attribute of `self` that is called; empty if it is something else."""
        function = call.func
        return function.attr if isinstance(function, ast.Attribute) and self.is_self(function.value) else ""

    def source(self, call: ast.Call) -> tuple[ast.expr | None, str]:
        """The expression whose value `call` gets as its input; and a reason.

        The reason says why the two might not run one right after the other with the value gone
        thereafter; it is empty if that is certain.
        """
        value = argument(call)
        if isinstance(value, ast.NamedExpr):
            return value.value, "the result of the first is used again"
        return self._assigned_before(call, value.id) if isinstance(value, ast.Name) else (value, "")

    def _assigned_before(self, call: ast.Call, name: str) -> tuple[ast.expr | None, str]:
        """The same for the variable `name`."""
        uses = [n for n in self.nodes if isinstance(n, ast.Name) and n.id == name]
        before = [n for n in uses if not _is_load(n) and _end(n) < _end(call)]
        names = [n for n in before if self.parents[n] is not self._statement(call)]
        if not names:
            return None, ""
        first = self.parents[max(names, key=_end)]
        if not isinstance(first, ast.Assign | ast.AnnAssign):
            return None, ""
        if isinstance(first, ast.Assign) and len(first.targets) > 1:
            return first.value, "the result of the first is used again"
        statement = self._statement(call)
        loads = [n for n in uses if _is_load(n) or isinstance(self.parents[n], ast.AugAssign)]
        here = [n for n in ast.walk(statement) if n in loads]
        rebound = isinstance(statement, ast.Assign) and any(t in uses for t in statement.targets)
        # Nothing but a nested function or a `finally` can read a variable after `return`.
        returned = isinstance(statement, ast.Return) and not self.nested
        if self.evaluates or len(here) > 1 or not (rebound or returned or len(loads) == 1):
            return first.value, "the result of the first is used again"
        if self._previous(statement) is not first or not self._comes_first(call, statement):
            return first.value, "other code stands between the two"
        return first.value, ""

    def previous(self, node: ast.AST) -> ast.stmt | None:
        """The statement before that of `node`, in the same block."""
        return self._previous(self._statement(node))

    def _statement(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def _previous(self, statement: ast.stmt) -> ast.stmt | None:
        parent = self.parents[statement]
        for field in ("body", "orelse", "finalbody"):
            block = getattr(parent, field, None)
            if isinstance(block, list) and statement in block[1:]:
                before: ast.stmt = block[block.index(statement) - 1]
                return before
        return None

    def _comes_first(self, call: ast.Call, statement: ast.stmt) -> bool:
        """`statement` runs `call` exactly once, and no call before it."""
        node: ast.AST = call
        while node is not statement:
            node = self.parents[node]
            if not isinstance(node, _STRAIGHT):
                return False
        return not any(
            n is not call and _end(n) <= _start(call) for n in ast.walk(statement) if isinstance(n, ast.Call)
        )

    def checksum(self) -> int:
        """Of the source, comments and layout aside."""
        return zlib.crc32(ast.dump(self.node).encode())


def argument(call: ast.Call) -> ast.expr | None:
    """What a call gets as its input; of `x.relu()`, that is x."""
    if call.args:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    if not call.keywords and isinstance(call.func, ast.Attribute):
        return call.func.value
    return next((keyword.value for keyword in call.keywords if keyword.arg == "input"), None)


class Methods:
    """The code of a module class, down to `nn.Module`'s, but for what sets a module up.

    Attributes:
        own: the methods found by their names.
        base: those of base classes that others call by `super()`.
        helpers: functions that may be given the module or its parts: static methods, setters, decorators,
            and what is called by its name; not PyTorch's own, which know no model's names.
        reached: the methods and helpers that `forward` leads to.
        unreadable: the names of methods without source.
        opaque: something of it is without source, be it a decorator or a helper.
    """

    def __init__(self, cls: type) -> None:
        self.own: dict[str, Method] = {}
        self.base: list[Method] = []
        self.unreadable: set[str] = set()
        functions: dict[str, list[types.FunctionType]] = collections.defaultdict(list)
        for owner in cls.__mro__:
            if owner is nn.Module or owner.__module__ == "torch.nn.modules.container":
                break
            if owner.__module__.startswith(_WRAPPERS):
                continue
            for name, value in vars(owner).items():
                if name not in ("__init__", "__setstate__"):
                    found = inspect.getattr_static(cls, name) is value
                    functions[name] += self._add(owner, name, value, found)
        called = {name for method in self.own.values() for name in method.others.read}
        self.base = [method for method in self.base if method.name in called]
        self.helpers, unread = _helpers(functions.values(), self.all)
        self.opaque = bool(unread or self.unreadable)
        names = ["forward", "__call__"]
        for name in names:  # which grow
            for method in self.all:
                if method.name == name:
                    names += (method.own.read.keys() | method.others.read.keys()) - {*names}
        methods = [method for method in self.all if method.name in names]
        self.reached = methods + _helpers((functions[name] for name in names), methods)[0]

    def _add(self, owner: type, name: str, value: Any, found: bool) -> list[types.FunctionType]:
        """Enters a class's attribute, if that is a method; returns the functions that come with it.

        `found`: no class before it has another attribute of that name.
        """
        if isinstance(value, staticmethod | classmethod):
            return _layers(value.__func__)
        others = []
        if isinstance(value, property):
            others = _layers(value.fset) + _layers(value.fdel)
        elif isinstance(value, functools.cached_property | functools.partialmethod):
            others = _layers(value.func)
        layers = _layers(value.fget if isinstance(value, property) else value)
        if not layers:
            return others
        *decorators, function = layers
        # A decorator's inner function says nothing about the method that it hides.
        hidden = "<locals>" in function.__qualname__.removeprefix(owner.__qualname__)
        method = None if hidden else _read(name, value, function)
        if method is None:
            self.unreadable.add(name)
        elif found:
            self.own[name] = method
        else:
            self.base.append(method)
        return others + decorators

    @property
    def all(self) -> list[Method]:
        """Those that have `self`."""
        return [*self.own.values(), *self.base]


def _layers(function: Any) -> list[types.FunctionType]:
    """A function's decorators from the outside in, and last the function itself."""
    layers = []
    while isinstance(function, types.FunctionType):
        layers.append(function)
        function = getattr(function, "__wrapped__", None)
    return layers


def _helpers(given: Iterable[list[types.FunctionType]], callers: list[Method]) -> tuple[list[Method], bool]:
    """The functions given, and what they and `callers` call by name; and whether some have no source."""
    found: dict[types.FunctionType, Method | None] = {}
    known = {caller.function for caller in callers}  # as decorators call them
    functions = [function for several in (*given, *map(_called, callers)) for function in several]
    for function in functions:  # which grow
        if function not in found and function not in known and not _is_torchs(function):
            helper = found[function] = _read(function.__name__, function, function, False)
            functions += _called(helper) if helper else []
    return [helper for helper in found.values() if helper], None in found.values()


def _called(caller: Method) -> list[types.FunctionType]:
    return [layer for call in caller.calls for layer in _layers(caller.resolve(call.func))]


def _is_torchs(function: Any) -> bool:
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "torch"


@functools.lru_cache(maxsize=4096)
def _read(name: str, attribute: Any, function: types.FunctionType, has_self: bool = True) -> Method | None:
    """The method that decorators made `attribute` of; None unless its source is what runs."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    owner, node, compiled = _definitions(text).get((code.co_firstlineno, code.co_name), ("", None, None))
    if node is None or compiled is None or not _same(compiled, code):
        return None
    node = copy.copy(node)
    node.decorator_list = []
    return Method(name, attribute, function, owner, node, has_self)


@functools.lru_cache(maxsize=256)
def _definitions(text: str) -> dict[tuple[int, str], tuple[str, ast.FunctionDef, types.CodeType | None]]:
    """A file's functions by first line and name: the class each stands in, its syntax tree, its code."""
    found: dict[tuple[int, str], tuple[str, ast.FunctionDef, types.CodeType | None]] = {}
    codes: dict[tuple[int, str], types.CodeType] = {}

    def collect(code: types.CodeType) -> None:
        codes[code.co_firstlineno, code.co_name] = code
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                collect(constant)

    def visit(parent: ast.AST, owner: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef):
                first = node.decorator_list[0] if node.decorator_list else node
                key = first.lineno, node.name
                found[key] = owner, node, codes.get(key)
            if isinstance(node, ast.stmt | ast.ExceptHandler):
                visit(node, node.name if isinstance(node, ast.ClassDef) else owner)

    try:
        # The whole of it: a function's bytecode depends on what the module imports.
        tree = ast.parse(text)
        collect(compile(text, "", "exec", dont_inherit=True))
    except (SyntaxError, ValueError):  # no Python: a cell of a notebook with magic commands, say
        return {}
    visit(tree, "_")
    return found


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    names = ("co_code", "co_names", "co_varnames", "co_freevars")
    return (
        all(getattr(a, name) == getattr(b, name) for name in names)
        and len(a.co_consts) == len(b.co_consts)
        and all(
            _same(x, y)
            if isinstance(x, types.CodeType) and isinstance(y, types.CodeType)
            else repr(x) == repr(y)
            for x, y in zip(a.co_consts, b.co_consts, strict=True)
        )
    )


def _iterated(node: ast.expr) -> list[ast.expr]:
    """What a loop over `node` gets its items from."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _ITERATORS:
        return [part for argument in node.args for part in _iterated(argument)]
    return [node]


def _held(instance: Any, name: str) -> Any:
    """What `instance.name` is, if the instance holds it and its class has no say: a property runs code."""
    cls = type(instance)
    if instance is MISSING or looks_up(cls):
        return MISSING
    held = getattr(instance, "__dict__", {})
    inherited = inspect.getattr_static(cls, name, MISSING)
    if name in held:
        return MISSING if hasattr(type(inherited), "__set__") else held[name]
    return held.get("_modules", {}).get(name, MISSING) if inherited is MISSING else MISSING


def looks_up(cls: Any) -> bool:
    """Whether attributes are looked up otherwise than an `nn.Module`'s or a plain object's are."""
    fallback = getattr(cls, "__getattr__", _GETATTR)
    return cls.__getattribute__ is not object.__getattribute__ or fallback is not _GETATTR


def contents(cell: types.CellType) -> Any:
    """What a closure's cell holds; MISSING while it is empty."""
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return MISSING


def _binds(node: ast.AST) -> list[str]:
    """The names that a node makes local."""
    if isinstance(node, ast.Name):
        return [] if _is_load(node) else [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).split(".")[0]]
    if isinstance(node, ast.ExceptHandler | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name] if node.name else []
    return []


def _is_load(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Load)


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0
